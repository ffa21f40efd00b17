"""BIDS and trees like it: sub-*/[ses-*/]anat, with labels beside the images or in derivatives/."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from dask_slicer.inputs.case import name_of
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.layouts.bids_names import BidsFile, bids_file, fits, is_in_space_of
from dask_slicer.inputs.layouts.bids_tables import ParticipantTables, read_table
from dask_slicer.inputs.role_words import plain
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural

_READ = ("anat", "")  # datatypes; "": beside the folders of datatypes, as in VerSe

# Datatypes whose derivatives hold labels that are seldom meant, as those of fMRIPrep.
_FUNCTIONAL = {"func", "fmap", "perf"}


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match images in sub-*/[ses-*/]anat, and the labels that repeat their entities."""
    result = LayoutMatch("BIDS")
    images, labels = _by_role(tree, result)
    read = [image for image in images if image.datatype in _READ]
    if not read:
        result.seen = len(images) + len(labels)
        result.miss = _miss(images, labels)
        return result
    label_of = _pair(read, images, labels, options, result)
    where = "anat" if any(image.datatype for image in read) else ""
    result.reason = (
        f"{plural(len(read), 'image')} in {f'sub-*/{where}'.rstrip('/')}, each a case, grouped by "
        "subject"
    )
    tables = ParticipantTables(tree)
    for image in read:
        label = label_of.get(image.path)
        result.add_case(
            image.stem,
            [tree.absolute(image.path)],
            None if label is None else tree.absolute(label.path),
            group=image.subject,
            columns=tables.columns(image),
        )
    suffixes = {image.suffix for image in read}
    if len(suffixes) == 1 and "" not in suffixes:
        result.channel_names = tuple(suffixes)
    result.label_names = _label_names(tree) if label_of else {}
    result.notes += tables.notes({image.subject for image in read})
    return result


def _by_role(tree: FileTree, result: LayoutMatch) -> tuple[list[BidsFile], list[BidsFile]]:
    """Return raw images and labels; note why other files are left out."""
    images: list[BidsFile] = []
    labels: list[BidsFile] = []
    misplaced: list[str] = []
    files = [file for file in map(bids_file, tree.volumes) if file is not None]
    is_declared = tree.has("dataset_description.json") or any(
        file.is_derived or "rawdata/" in file.above for file in files
    )
    for file in files:
        # <case>/<case>_t1.nii.gz is a folder for each case, unless other folders say BIDS.
        is_flat = not (file.is_derived or file.datatype)
        is_named = file.stem.startswith("sub-") and (is_declared or file.in_session)
        if is_flat and not is_named:
            continue
        if file.is_misplaced:
            misplaced.append(file.path)
        elif "sourcedata/" in file.above:
            result.left_out[file.path] = "in sourcedata/, which is not read"
        elif file.is_label:
            labels.append(file)
        elif file.is_derived:
            result.left_out[file.path] = "in derivatives/, and not named like a label"
        else:
            images.append(file)
    if misplaced:
        result.problems.append(
            f"{plural(len(misplaced), 'file')} in the folder of another subject than the name "
            f"says: {first_few(misplaced)}; move or rename, or name the files in a manifest"
        )
    for image in images:
        if image.datatype not in _READ:
            pattern = _pattern(image.path)
            result.left_out[image.path] = f"in {image.datatype}/; --images '{pattern}' reads it"
    return images, labels


def _pair(
    read: Sequence[BidsFile],
    images: Sequence[BidsFile],
    labels: Sequence[BidsFile],
    options: InputOptions,
    result: LayoutMatch,
) -> dict[str, BidsFile]:
    """Return the label of each image that is read and has one, by path of the image."""
    of_subject: defaultdict[str, list[BidsFile]] = defaultdict(list)
    for image in images:
        of_subject[plain(image.subject)].append(image)
    candidates: defaultdict[str, list[BidsFile]] = defaultdict(list)
    ambiguous: list[tuple[BidsFile, list[BidsFile]]] = []
    orphans = []
    for label in labels:
        matching = _images_of(label, of_subject[plain(label.subject)])
        datatypes = {image.datatype for image in matching}
        why = label.no_label_map
        if why and not (options.label_name and _is_named(label, matching, options.label_name)):
            result.left_out[label.path] = why
            result.not_labels.add(label.path)
        elif not matching:
            orphans.append(label.path)
        elif len(datatypes) > 1:
            ambiguous.append((label, matching))
        elif datatypes.isdisjoint(_READ):
            result.left_out[label.path] = f"of an image in {matching[0].datatype}/"
            if label.datatype in _FUNCTIONAL:
                result.not_labels.add(label.path)
        else:
            for image in matching:
                candidates[image.path].append(label)
    result.leave_out(orphans, "label", "without an image")
    if ambiguous:
        result.problems.append(_ambiguous_problem(ambiguous))
        why = f"of an image in {' or '.join(sorted({i.datatype for i in ambiguous[0][1]}))}/"
        result.left_out.update((label.path, why) for label, _ in ambiguous)
    return _choose(read, candidates, options.label_name, result)


def _images_of(label: BidsFile, images: Iterable[BidsFile]) -> list[BidsFile]:
    """Return the images that a label may belong to: those of which it repeats most entities."""
    matching = [image for image in images if fits(label, image)]
    # Suffixes that BIDS does not have.
    named = [image for image in matching if image.suffix and image.suffix in label.parts]
    matching = named or matching
    if not label.datatype and any(not image.datatype for image in matching):
        matching = [image for image in matching if not image.datatype]
    if len(matching) < 2:
        return matching
    repeated = [
        (image.derived <= label.derived, len(image.derived & label.derived)) for image in matching
    ]
    most = max(repeated)
    return [image for image, rank in zip(matching, repeated, strict=True) if rank == most]


def _choose(
    read: Sequence[BidsFile],
    candidates: dict[str, list[BidsFile]],
    label_name: str | None,
    result: LayoutMatch,
) -> dict[str, BidsFile]:
    """Return the label of each image; several for one image are a problem."""
    label_of: dict[str, BidsFile] = {}
    several: list[tuple[BidsFile, list[BidsFile]]] = []
    names: Counter[str] = Counter()
    for image in read:
        labels = candidates.get(image.path, [])
        if label_name is not None:
            names.update(name for label in labels for name in label.names_beside(image))
            labels = [label for label in labels if _is_named(label, [image], label_name)]
        elif in_space := [label for label in labels if is_in_space_of(label, image)]:
            labels = in_space
        if len(labels) > 1:
            several.append((image, labels))
        if labels:
            label_of[image.path] = labels[0]
    if several:
        result.problems.append(_several_problem(several))
    elif label_name is not None and names and not label_of:
        result.problems.append(
            f"no label is called {label_name} (--label_name); labels are called "
            f"{first_few([name for name, _ in names.most_common()], 8)}"
        )
    why = f"not the label that --label_name {label_name} chooses"
    why = "in another space than its image" if label_name is None else why
    result.left_out |= {label.path: why for labels in candidates.values() for label in labels}
    why = "one of several labels of an image"
    result.left_out |= {label.path: why for _, labels in several for label in labels}
    for label in label_of.values():
        result.left_out.pop(label.path, None)
    shared = Counter(label.path for label in label_of.values())
    if shared_paths := [path for path, count in shared.items() if count > 1]:
        result.notes.append(
            f"{plural(len(shared_paths), 'label')} without an image's suffix in the name, used for "
            f"several images that repeat its entities: {first_few(shared_paths)}; --images chooses "
            "images"
        )
    return label_of


def _several_problem(several: Sequence[tuple[BidsFile, Sequence[BidsFile]]]) -> str:
    image, labels = several[0]
    names = [_unique_name(label, labels, image) for label in labels]
    cases = plural(len(several), "case")
    if None in names:
        paths = first_few([label.path for label in labels])
        return f"{cases} with several labels, such as {image.stem}: {paths}; name one in a manifest"
    chosen = [name for name in names if name is not None]
    return (
        f"{cases} with several labels, such as {image.stem}: {first_few(chosen, 8)}; "
        f"choose one, such as --label_name {chosen[0]}"
    )


def _unique_name(label: BidsFile, labels: Sequence[BidsFile], image: BidsFile) -> str | None:
    """Return a name that chooses a label among those of one image."""
    others = {plain(n) for other in labels if other is not label for n in other.names_beside(image)}
    names = label.names_beside(image)
    return next((name for name in names if plain(name) not in others), None)


def _ambiguous_problem(ambiguous: Sequence[tuple[BidsFile, Sequence[BidsFile]]]) -> str:
    label, images = ambiguous[0]
    datatypes = sorted({image.datatype for image in images})
    # The image that a datatype is named for, such as dwi/…_dwi.nii.gz.
    example = min(images, key=lambda image: (image.suffix != image.datatype, image.path))
    return (
        f"{plural(len(ambiguous), 'label')} may belong to images in {' or '.join(datatypes)}, such "
        f"as {label.path}; choose, such as --images '{_pattern(example.path)}' "
        f"--labels '{_pattern(label.path)}'"
    )


def _miss(images: Sequence[BidsFile], labels: Sequence[BidsFile]) -> str:
    """Return why no image can be read."""
    where = "sub-*/anat or sub-*/ses-*/anat"
    if images:
        folders = ", ".join(sorted({image.datatype for image in images}))
        return (
            f"no image in {where}, but {len(images)} in {folders}; "
            f"--images '{_pattern(images[0].path)}' reads them"
        )
    if labels:
        return (
            f"no image in {where}; {plural(len(labels), 'file')} named like labels: "
            f"{first_few([label.path for label in labels])}"
        )
    return f"no NIfTI file in {where}"


def _pattern(path: str) -> str:
    """Return a pattern for --images or --labels that a file and those like it match.

    >>> _pattern("rawdata/sub-1/ses-01/dwi/sub-1_ses-01_adc.nii.gz")
    'rawdata/sub-*/ses-*/dwi/*_adc.nii.gz'
    """
    folder, _, name = path.rpartition("/")
    folder = re.sub(r"\b(sub|ses)-[^/]*", r"\1-*", folder)
    return f"{folder}/*{name[name.rfind('_') :]}" if "_" in name else f"{folder}/{name}"


def _is_named(label: BidsFile, images: Iterable[BidsFile], name: str) -> bool:
    names = {plain(own) for image in images for own in label.names_beside(image)}
    return plain(name) in names


def _label_names(tree: FileTree) -> dict[int, str]:
    """Return the names in the table of labels, if there is a single one for all subjects."""
    tables = [
        path
        for path in tree.paths
        if path.endswith("dseg.tsv") and not name_of(path).startswith("sub-")
    ]
    rows = read_table(tree, tables[0]) if len(tables) == 1 else []
    return {
        int(row["index"]): row["name"]
        for row in rows
        if row.get("name") and str(row.get("index")).isdecimal() and int(row["index"]) > 0
    }
