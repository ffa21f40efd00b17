"""Names of channels and label values, as dataset_info.json and the metadata of slices hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of channels, one for each modality, and of label values; empty where unknown."""

    channels: tuple[str, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """Return the known names as keys of a slice's metadata.

        >>> Names(channels=("CT",), labels={2: "spleen", 1: "liver"}).metadata()
        {'channel_names': ['CT'], 'label_names': {'1': 'liver', '2': 'spleen'}}
        """
        labels = {str(value): name for value, name in sorted(self.labels.items())}
        names = {"channel_names": list(self.channels), "label_names": labels}
        return {key: value for key, value in names.items() if value}

    def summary(self) -> dict[str, Any]:
        """Return the known names as keys of dataset_info.json, where channels have numbers, too.

        >>> Names(channels=("T1w", "FLAIR")).summary()
        {'channel_names': {'0': 'T1w', '1': 'FLAIR'}}
        """
        names = self.metadata()
        if self.channels:
            names["channel_names"] = {str(n): name for n, name in enumerate(self.channels)}
        return names

    @classmethod
    def parse(cls, summary: Mapping[str, Any]) -> Names:
        """Return the names in dataset_info.json; raise ValueError if they are damaged."""
        channels, labels = summary.get("channel_names", {}), summary.get("label_names", {})
        try:
            return cls(
                channels=tuple(str(channels[str(n)]) for n in range(len(channels))),
                labels={int(value): str(name) for value, name in labels.items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError("channel_names or label_names are not names by number") from None


NO_NAMES = Names()
