"""One folder per case, as in BraTS."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from dask_slicer.inputs.case import Mask, name_of, stem_of
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch, unknown_name
from dask_slicer.inputs.layouts.case_folder import (
    UNNAMED,
    CaseFolder,
    ids_in_names,
    own_images,
    read_case_folder,
)
from dask_slicer.inputs.layouts.split_folders import match_splits
from dask_slicer.inputs.pairing import choose_name
from dask_slicer.inputs.role_words import (
    are_modalities,
    folder_role,
    image_words,
    label_words,
    may_be_case,
    plain,
    says_only_its_role,
    without,
    words_of,
)
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match <case>/*.nii.gz, one file for each modality, also in folders such as <case>/pre/.

    Also in folders of splits.
    """
    return match_splits(tree, options, _match_folder) or _match_folder(tree, options)


def _match_folder(tree: FileTree, options: InputOptions) -> LayoutMatch:
    result = LayoutMatch("a folder a case")
    folders = _folders(tree, options, result)
    if result.miss:
        return result
    spelled: dict[str, str] = {}
    ids = ids_in_names(folders)
    named = {
        case_id: read_case_folder(case_id, paths, result, spelled, in_names=ids[case_id])
        for case_id, paths in folders.items()
    }
    if options.structures:
        _choose_structures(named, options.structures, result)
    elif options.label_name:
        _choose_label(named, options.label_name, result)
    elif several := [case_id for case_id in named if len(named[case_id].alternatives) > 1]:
        pairs = {case_id: own_images(named[case_id]) for case_id in several}
        if all(pairs.values()):
            _pairs_as_cases(tree, named, result)
            return result
        _refuse_several_labels(named, several, result)
    if not (options.label_name or options.modalities or options.structures):
        _refuse_other_numbers(named, result)
    _add_cases(tree, named, ids, options, result)
    return result


def _folders(tree: FileTree, options: InputOptions, result: LayoutMatch) -> dict[str, list[str]]:
    """Return the volumes of each folder that is a case; `result.miss` if folders are no cases."""
    folders: dict[str, list[str]] = {}
    for path in tree.volumes:
        case_id, slash, _ = path.partition("/")
        if slash:
            folders.setdefault(case_id, []).append(path)
    result.seen = len(tree.within(""))
    direct = [case_id for case_id in folders if tree.within(case_id)]
    roles = {
        case_id: "" if may_be_case(case_id, paths) else folder_role(case_id)
        for case_id, paths in folders.items()
    }
    if not folders:
        result.miss = (
            f"found {plural(result.seen, 'NIfTI file')} beside each other, not in folders"
            if result.seen
            else "no folder with an image in it"
        )
    elif 2 * len(direct) < len(folders):
        result.miss = (
            f"{plural(len(folders) - len(direct), 'folder')} of {len(folders)} with volumes only "
            f"in folders below ({first_few(sorted(set(folders) - set(direct)))}); --input_dir must "
            "be the folder that holds the folders of cases"
        )
    elif any(map(says_only_its_role, folders)) or (
        "label" in roles.values() and set(roles.values()) != {"label"}
    ):
        named = [case_id for case_id in folders if roles[case_id]]
        result.miss = f"{first_few(named)} named for images or labels, not for a case"
    elif len(folders) == 1 and not _is_one_case(options, *next(iter(folders.items()))):
        result.miss = (
            "one folder, whose files may be a case each; --layout folder_per_case takes it as one"
        )
    return folders


def _is_one_case(options: InputOptions, case_id: str, paths: list[str]) -> bool:
    """Return whether the only folder is a case, not one of several patients, by its files."""
    named = read_case_folder(case_id, paths, LayoutMatch(""), {})
    chosen = {options.label_name, *options.structures} - {None}
    if options.layout or (chosen and chosen <= {*named.images, *named.labels}):
        return True
    is_flat = all(path.count("/") == 1 for path in paths)
    if (
        len(paths) == 1
        or not is_flat
        or all(stem_of(name_of(p)).startswith(case_id) for p in paths)
    ):
        return True
    labels = {without(name, label_words(words_of(name))) for name in named.labels}
    images = {without(name, image_words(name)) for name in named.images}
    is_one_image = len(named.images) == 1 or are_modalities(named.images)
    return labels == {""} or (is_one_image and (images == {""} or len(labels | images) == 1))


def _pairs_as_cases(tree: FileTree, named: Mapping[str, CaseFolder], result: LayoutMatch) -> None:
    """Add a case for each label and its image, as in ACDC; a folder is a patient."""
    pairs = [
        (folder, names.images[image], names.labels[label])
        for folder, names in named.items()
        for label, image in own_images(names).items()
    ]
    stems = Counter(plain(stem_of(name_of(image))) for _, image, _ in pairs)
    for folder, image, label in pairs:
        stem = stem_of(name_of(image)).strip()
        case_id = stem if stems[plain(stem)] == 1 else f"{folder}_{stem}"
        result.add_case(case_id, [tree.absolute(image)], tree.absolute(label), group=folder)
    used = {path for _, *paths in pairs for path in paths}
    images = [path for names in named.values() for path in names.images.values()]
    result.leave_out(
        [path for path in images if path not in used], "image", "without a label of its own"
    )
    labels = [path for names in named.values() for path in names.labels.values()]
    result.leave_out([path for path in labels if path not in used], "label", "without an image")
    result.reason = (
        f"{plural(len(named), 'folder')} with several labels, each with an image of its own, "
        f"such as {' and '.join(stem_of(name_of(path)) for path in pairs[0][1:])}: each image is a "
        "case, each folder a group"
    )


def _refuse_several_labels(
    named: Mapping[str, CaseFolder], several: list[str], result: LayoutMatch
) -> None:
    names = named[several[0]].alternatives
    others = f" ({plural(len(several) - 1, 'case')} more likewise)" if len(several) > 1 else ""
    result.problems.append(
        f"case {several[0]} has {len(names)} labels: {first_few(names, 6)}{others}; choose with "
        f"--label_name {names[0]}, or merge masks of one structure each with --structures"
    )


def _refuse_other_numbers(named: Mapping[str, CaseFolder], result: LayoutMatch) -> None:
    """Add the problem of a label whose number an image lacks: frame12_gt is not of frame01."""
    for case_id, names in named.items():
        for label in names.labels:
            numbers = re.findall(r"\d+", without(label, label_words(words_of(label))))
            for image in names.images:
                others = re.findall(r"\d+", without(image, image_words(image)))
                if numbers and others and numbers != others:
                    result.problems.append(
                        f"case {case_id}: is {label} the label of {image}? their numbers differ; "
                        f"use --label_name {label}, or --images and --labels for other pairs"
                    )
                    return


def _choose_label(named: Mapping[str, CaseFolder], name: str, result: LayoutMatch) -> None:
    """Keep the label that --label_name names; the others are left out."""
    labels = {label for names in named.values() for label in names.alternatives}
    files = {file for names in named.values() for file in (*names.images, *names.mask_files)}
    chosen = choose_name(name, labels) or choose_name(name, files)
    if chosen is None:
        result.problems.append(unknown_name("label_name", name, labels or files))
        return
    left_out = []
    for names in named.values():
        label = {**names.labels, **names.mask_files, **names.images}.get(chosen)
        names.images.pop(chosen, None)
        masks = names.masks.get(chosen)
        kept = {label, *(masks or {}).values()}
        left_out += [
            path
            for path in (*names.labels.values(), *names.mask_files.values())
            if path not in kept
        ]
        names.labels = {} if label is None else {chosen: label}
        names.masks = {} if masks is None else {chosen: masks}
    result.leave_out(left_out, "label", f"left out, --label_name is {name}")


def _choose_structures(
    named: Mapping[str, CaseFolder], structures: Iterable[str], result: LayoutMatch
) -> None:
    """Keep the masks that --structures names, in its order; other labels are left out."""
    files = {case_id: names.by_structure for case_id, names in named.items()}
    known = {structure for paths in files.values() for structure in paths}
    likely = {name for names in named.values() for name in names.by_structure} - {
        name for names in named.values() for name in names.images
    }
    structures = list(structures)
    if not likely and not any(choose_name(name, known) for name in structures):
        return  # scans without labels
    chosen = []
    for name in structures:
        structure = choose_name(name, likely) or choose_name(name, known)
        if structure is None:
            result.problems.append(unknown_name("structures", name, likely or known))
        else:
            chosen.append(structure)
    left_out = []
    for case_id, names in named.items():
        masks = {name: files[case_id][name] for name in chosen if name in files[case_id]}
        used = set(masks.values())
        labels = (*names.labels.values(), *names.mask_files.values())
        left_out += [path for path in labels if path not in used]
        names.images = {name: path for name, path in names.images.items() if path not in used}
        names.labels = {}
        names.masks = {"structures": masks} if masks else {}
    result.leave_out(left_out, "label", "not in --structures")


def _add_cases(
    tree: FileTree,
    named: Mapping[str, CaseFolder],
    ids: Mapping[str, str],
    options: InputOptions,
    result: LayoutMatch,
) -> None:
    """Add a case for each folder."""
    modalities = _modalities(named, options, result)
    usual = {name: (other, path) for other in named for name, path in named[other].images.items()}
    for case_id, names in named.items():
        images = [
            names.images.get(name) or _expected(case_id, *usual[name], ids)
            for name in modalities or names.images
        ]
        label = next(iter(names.labels.values()), None)
        masks = next(iter(names.masks.values()), {}) if label is None else {}
        structures = masks if options.structures else sorted(masks)
        result.add_case(
            case_id,
            map(tree.absolute, images),
            None if label is None else tree.absolute(label),
            masks=[Mask(structure=name, path=tree.absolute(masks[name])) for name in structures],
        )
    result.channel_names = () if modalities == [UNNAMED] else tuple(modalities)
    result.reason = f"{plural(len(named), 'folder')} with " + (
        f"the images {', '.join(modalities)}" if len(modalities) > 1 else "an image each"
    )
    if any(case.masks for case in result.cases):
        result.reason += ", and masks of one structure each"


def _expected(case_id: str, other: str, path: str, ids: Mapping[str, str]) -> str:
    """Return the path of an image that a case lacks, as it is in another case.

    >>> _expected("2", "1", "1/pre/T1.nii", {"1": "1", "2": "2"})
    '2/pre/T1.nii'
    >>> _expected("B-2_x", "B-1_x", "B-1_x/B-1-t1c.nii", {"B-1_x": "B-1", "B-2_x": "B-2"})
    'B-2_x/B-2-t1c.nii'
    """
    folder, _, name = path.removeprefix(f"{other}/").rpartition("/")
    if re.match(rf"{re.escape(ids[other])}[_\-. ]", name, re.IGNORECASE):
        name = ids[case_id] + name[len(ids[other]) :]
    return "/".join(filter(None, (case_id, folder, name)))


def _modalities(
    named: Mapping[str, CaseFolder], options: InputOptions, result: LayoutMatch
) -> list[str]:
    """Return the names of the images that all cases have; [] if each folder has its own."""
    counts = Counter(name for names in named.values() for name in names.images)
    # A name in few folders is a stray file; if no name is common, each folder has its own.
    modalities = sorted(name for name, count in counts.items() if 2 * count >= len(named))
    if len(named) > 1 and set(counts.values()) == {1} and not are_modalities(counts):
        modalities = []
    strays = [
        path
        for names in named.values()
        for name, path in names.images.items()
        if modalities and name not in modalities
    ]
    result.leave_out(strays, "file", "left out, most cases have none of this name")
    places = Counter(name.rpartition("/")[0] for name in reversed(modalities))
    if not counts:
        labels = [path for names in named.values() for path in names.labels.values()]
        result.problems.append(
            f"every volume in the folders of cases is named like a label ({first_few(labels)}); "
            "say which are images with --images and --labels, or in a manifest"
        )
    elif not modalities and any(len(names.images) > 1 for names in named.values()):
        several = next(names for names in named.values() if len(names.images) > 1)
        result.problems.append(
            "several images in a folder, with names that other folders do not have: "
            f"{first_few(list(several.images.values()))}; say which are images of a case with "
            "--images '*/*…' for each modality"
        )
    elif len(places) > 1 and not options.modalities:
        ((place, _),) = places.most_common(1)
        chosen = [name for name in modalities if name.rpartition("/")[0] == place]
        result.problems.append(
            f"a case has images in {len(places)} folders: {first_few(modalities, 6)}; are their "
            f"grids the same? choose with --modalities {','.join(chosen)} or --images"
        )
    elif _may_be_patients(modalities, named) and not options.modalities:
        result.problems.append(
            f"the images of a folder have numbers: {first_few(modalities)}; are they modalities "
            f"of a case (--modalities {','.join(modalities[:2])}), or a case each (--images "
            "'*/*.nii.gz')?"
        )
    return modalities


def _may_be_patients(modalities: list[str], named: Mapping[str, CaseFolder]) -> bool:
    """Return whether images have numbers, as of patients, and their names lack the case id."""
    rests = [without(name, image_words(name)) for name in modalities]
    return (
        len(modalities) > 1
        and any(re.search(r"(?<![^\W_])[^\W\d_]*\d+(?![^\W_])", rest) for rest in rests)
        and not all(
            plain(stem_of(name_of(path))).startswith(plain(case_id))
            for case_id, names in named.items()
            for path in names.images.values()
        )
    )
