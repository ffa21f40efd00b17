"""Settings of steps: what they take, and one line for each that is wrong."""

from __future__ import annotations

import pytest
import yaml

from dask_slicer.config.loader import build_config, to_yaml
from dask_slicer.config.schema import RunConfig
from dask_slicer.config.step_settings import CT_WINDOWS, StepSettings, ct_window_limits
from dask_slicer.errors import ConfigError

PLACES = {"input_dir": "a", "output_dir": "b"}
STEPS = {
    "label_map": ("liver , 2:1 *:0", "liver,2:1 *:0"),
    "min_component_voxels": ("5", 5),
    "min_component_pixels": ("5", 5),
    "crop": ("0:3, 0:4,2:5", "0:3,0:4,2:5"),
    "ct_windows": ("Lung, 40/400", ("-600/1500", "40/400")),
    "foreground": ("OTSU", "otsu"),
    "spacing": ("none,1,0.5", (None, 1.0, 0.5)),
    "resample_order": ("1", 1),
    "size": ("256", (256, 256)),
    "fit": ("Letterbox", "letterbox"),
    "size_order": ("3", 3),
    "slices": ("10%: 90%", "10%:90%"),
    "stride": ("2", 2),
    "keep_empty": ("0.1", 0.1),
    "keep_empty_in": ("ALL", "all"),
    "context_mm": ("2.5", 2.5),
    "drop_blank": (True, True),
}


def test_texts_become_values_and_yaml_keeps_them() -> None:
    config = build_config(PLACES | {name: text for name, (text, _) in STEPS.items()})
    assert {name: getattr(config, name) for name in STEPS} == {
        name: value for name, (_, value) in STEPS.items()
    }
    assert build_config({}, base=yaml.safe_load(to_yaml(config))) == config
    assert set(config.changed_steps) == set(STEPS)
    assert build_config(PLACES).changed_steps == {}


def test_other_spellings() -> None:
    config = RunConfig(
        **PLACES, size=[128, 256], spacing=[2, None, 1.5], percentiles=[1, 99], crop="nonzero"
    )
    assert (config.size, config.spacing) == ((128, 256), (2.0, None, 1.5))
    assert build_config(PLACES | {"size": "128,256"}).size == (128, 256)
    assert RunConfig(**PLACES, size=64).size == (64, 64)
    both = build_config(PLACES | {"ct_windows": ["abdomen", "lung,400/1800"]}).ct_windows
    assert both == ("40/400", "-600/1500", "400/1800")
    for wrong in (True, [True], 3):
        with pytest.raises(ConfigError, match="ct_windows must be"):
            build_config(PLACES | {"ct_windows": wrong})


def test_windows_have_their_limits() -> None:
    assert {name: ct_window_limits(window) for name, window in CT_WINDOWS.items()} == {
        "abdomen": (-160, 240),
        "lung": (-1350, 150),
        "bone": (-500, 1300),
        "brain": (0, 80),
        "mediastinum": (-125, 225),
        "liver": (-45, 105),
        "subdural": (-32.5, 182.5),
    }


def test_limits_leave_nothing_to_normalise() -> None:
    assert RunConfig(**PLACES).normalize == "zscore"
    assert RunConfig(**PLACES, dtype="uint8").normalize == "none"
    assert build_config(PLACES | {"dtype": "UINT8", "normalize": None}).normalize == "none"
    assert RunConfig(**PLACES, ct_windows=["lung"]).normalize == "none"
    assert RunConfig(**PLACES, ct_windows=["lung"], normalize="none").normalize == "none"


WRONG = {
    "dtype uint8 maps limits to a fixed range, so normalize must be none, got zscore": {
        **{"dtype": "uint8", "normalize": "zscore"},
    },
    "ct_windows maps limits to a fixed range, so normalize must be none, got minmax": {
        **{"ct_windows": "lung", "normalize": "minmax"},
    },
    "ct_windows have their own limits; leave out clip_min and clip_max": {
        **{"ct_windows": "lung", "clip_min": 1, "clip_max": 2},
    },
    "ct_windows and percentiles both set the range; give one of them": {
        **{"ct_windows": "lung", "percentiles": "1,99"},
    },
    "normalize dataset has its own limits; leave out clip_min, or use normalize zscore": {
        **{"normalize": "dataset", "clip_min": 1},
    },
    "normalize percentile has its own limits; leave out percentiles, or use normalize zscore": {
        **{"normalize": "percentile", "percentiles": "1,99"},
    },
    "dtype source keeps the integers of the file, and spacing changes them; use dtype": {
        **{"dtype": "source", "format": "zarr", "spacing": "1,1,1"},
    },
    "dtype source keeps the integers of the file, and fit resize changes them; use dtype": {
        **{"dtype": "source", "format": "zarr", "size": "64", "fit": "resize"},
    },
    "dtype source keeps the integers of the file, and ct_windows changes them; use dtype": {
        **{"dtype": "source", "format": "zarr", "ct_windows": "lung"},
    },
    "ct_windows must be LEVEL/WIDTH, such as 40/400, or one of abdomen, lung": {"ct_windows": "x"},
    "ct_windows must be LEVEL/WIDTH": {"ct_windows": "40/0"},
    "size must be one number, or rows,columns, such as 256,320, got 1,2,3": {"size": "1,2,3"},
    "size must be 1 or more, got 0": {"size": "0"},
    "spacing must be mm along slice,row,column, such as 2,1,1 or none,1,1, got 1,2": {
        "spacing": "1,2"
    },
    "spacing must be greater than 0, got -1": {"spacing": "1,1,-1"},
    "spacing must be given for at least one axis": {"spacing": "none,none,none"},
    "percentiles must be two percentages, such as 0.5,99.5, got 5": {"percentiles": "5"},
    "percentiles must be two percentages, the lower one first": {"percentiles": "99,1"},
    "percentiles must be 100 or less, got 101": {"percentiles": "1,101"},
    "crop must be nonzero, label, or a box such as 0:256,0:256,10:90, got 1:2": {"crop": "1:2"},
    "crop must be nonzero, label, or a box such as": {"crop": "3:3,0:4,0:5"},
    "resample_order must be one of 0, 1, 3, got 2": {"resample_order": "2", "spacing": "1,1,1"},
    "slices must be A:B, such as 80:-26 or 10%:90%, got 5": {"slices": "5"},
    "stride must be 1 or more, got 0": {"stride": 0},
    "label_map must be pairs OLD:NEW": {"label_map": "x"},
    "context_mm must be greater than 0, got -1": {"context_mm": -1},
    "context_step and context_mm must not both be given": {"context_mm": 1, "context_step": 2},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_setting_is_one_line(message) -> None:
    with pytest.raises(ConfigError) as error:
        build_config(PLACES | WRONG[message])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_same_problem_of_two_numbers_is_told_once() -> None:
    with pytest.raises(ConfigError) as error:
        build_config(PLACES | {"size": "0"})
    assert str(error.value) == "size must be 1 or more, got 0"


def test_steps_are_in_the_order_of_the_documentation() -> None:
    names = list(StepSettings.model_fields)
    order = ["label_map", "crop", "percentiles", "spacing", "size", "slices", "context_step"]
    assert sorted(order, key=names.index) == order
