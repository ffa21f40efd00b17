"""All volumes in one folder, distinguished by words in their names, as in LiTS."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from dask_slicer.inputs.case import split_channel
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch, by_stem, unknown_name
from dask_slicer.inputs.pairing import choose_name, pair, role_words, words_of_all
from dask_slicer.inputs.role_words import (
    all_label_words,
    are_modalities,
    folder_role,
    image_words,
    label_words,
    named_like_labels,
    names_an_image,
    pieces_of,
    plain,
    says_only_its_role,
    without,
    words_of,
)
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match volume-0.nii and segmentation-0.nii, or p1_t1.nii, p1_t2.nii and p1_seg.nii.

    The files of a case have equal names without the words for images, which are its modalities,
    and for labels.
    """
    result = LayoutMatch("one folder")
    if len(tree.by_folder) != 1:
        result.miss = "volumes are in several folders" if tree.by_folder else "no NIfTI file"
        return result
    ((folder, paths),) = tree.by_folder.items()
    role = folder_role(folder) if says_only_its_role(folder) else ""
    if "/" in folder or (role in ("image", "label") and options.layout is None):
        result.miss = f"the only folder with volumes is {folder}"
        return result
    result.seen = len(paths)
    path_of = by_stem(paths, result)
    labels = _labels(list(path_of))
    images = sorted(path_of.keys() - set(labels))
    if not images or not (labels or all(map(names_an_image, images))):
        way_out = _patterns(folder, list(path_of))
        if not images:
            way_out = "all are named like labels, so give --input_dir the folder of both"
        result.miss = (
            f"the names of {plural(len(path_of), 'file')} do not tell images from labels: "
            f"{first_few(list(path_of))}; {way_out}"
        )
        return result
    image_of, modalities = _images(images, labels, path_of, result)
    if len(image_of) == 1 and len(modalities) > 1 and not any(image_of):
        way_out = "--layout folder_per_case" if folder else f"--input_dir {tree.root.parent}"
        result.miss = (
            f"its files are those of one case ({first_few(images)}); did you mean {way_out}?"
        )
        return result
    label_of = _labels_by_key(images, labels, path_of, options, result)
    pairing = pair(image_of, label_of)
    if label_of and not pairing.image_of:
        result.problems.append(
            f"no label ({first_few(labels)}) pairs with an image ({first_few(images)}); say what "
            "varies with --images '…*.nii.gz' --labels '…*.nii.gz', or use a manifest"
        )
    label_key = {image: label for label, image in pairing.image_of.items()}
    for key, by_modality in image_of.items():
        case_id, *_ = by_modality.values()
        if len(modalities) > 1:
            case_id = without(case_id, role_words(images, labels)[0])
        files = [
            path_of[by_modality[name]]
            if name in by_modality
            else f"{folder}/{case_id}_{name}.nii.gz".lstrip("/")
            for name in modalities or by_modality
        ]
        label = path_of[label_of[label_key[key]]] if key in label_key else None
        absolute = None if label is None else tree.absolute(label)
        result.add_case(case_id.strip(), map(tree.absolute, files), absolute)
    unpaired = [path_of[stem] for key, stem in label_of.items() if key not in pairing.image_of]
    result.leave_out(sorted(unpaired), "label", "without an image")
    result.channel_names = modalities
    result.reason = f"one folder has {plural(len(images), 'image')}" + (
        f" and {plural(len(labels), 'label')}, paired by name, such as "
        f"{next(iter(image_of[min(label_key)].values()))} and {label_of[label_key[min(label_key)]]}"
        if label_key
        else " and no label"
    )
    return result


def _patterns(folder: str, stems: list[str]) -> str:
    """Return the options that take all files as images, those of a case by their channels."""
    prefix = f"{folder}/" if folder else ""
    parts = [part for stem in stems if (part := split_channel(stem))]
    cases, channels = ({part[end] for part in parts} for end in (0, 1))
    # a_0000 and a_0001 alone may be two patients.
    is_whole = len(parts) == len(stems) == len(cases) * len(channels)
    if is_whole and len(cases) > 1 and channels == set(range(len(channels))):
        options = " ".join(f"--images '{prefix}*_{channel:04d}*'" for channel in sorted(channels))
        return f"{options} takes {plural(len(cases), 'case')} without labels"
    return f"--images '{prefix}*' takes each as a case"


def _labels(stems: list[str]) -> list[str]:
    """Return the names that are named like labels; a word that all have does not count."""
    for end in (-1, 0):  # before words inside a name, which may be those of an id
        if labels := _labels_by_end(stems, end):
            return labels
    common = set.intersection(*(words_of_all([stem]) for stem in stems))
    names = [without(stem, common) for stem in stems]
    labels = [
        stem
        for stem, name, is_label in zip(stems, names, named_like_labels(names), strict=True)
        # A word such as tumor may be that of an id, but not at the end.
        if is_label and (label_words(words_of(name)) or all_label_words(pieces_of(stem)[-1][1]))
    ]
    return stems if label_words(common) and not labels else labels


def _labels_by_end(stems: list[str], end: int) -> list[str]:
    """Return the labels if each name is one of a pair that only its last or first word tells apart.

    >>> _labels_by_end(["p1_totalseg_image", "p1_totalseg_label"], -1)
    ['p1_totalseg_label']
    """
    others: dict[bool, set[tuple[tuple[str, str], ...]]] = {True: set(), False: set()}
    labels = []
    for stem in stems:
        pieces = list(pieces_of(plain(stem)))
        (_, word) = pieces.pop(end)
        is_label = bool(label_words([word]))
        if not (is_label or image_words(word)):
            return []
        others[is_label].add(tuple(pieces))
        labels += [stem] if is_label else []
    return labels if others[True] == others[False] and 2 * len(labels) == len(stems) else []


def _images(
    images: list[str], labels: list[str], path_of: Mapping[str, str], result: LayoutMatch
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Return the images of each case by modality, and the modalities, () if each has one image.

    A modality that fewer than half of the cases have is a stray file.
    """
    words, _ = role_words(images, labels)
    by_key: defaultdict[str, dict[str, str]] = defaultdict(dict)
    spelled: dict[str, str] = {}
    for stem in images:
        own = {piece.casefold(): piece for _, piece in pieces_of(stem) if piece.casefold() in words}
        modality = spelled.setdefault("_".join(own), "_".join(own.values()))
        other = by_key[plain(without(stem, words))].setdefault(modality, stem)
        if other != stem:
            result.problems.append(f"two files for one volume: {other} and {stem}")
    counts = Counter(name for by_modality in by_key.values() for name in by_modality)
    if all(len(by_modality) == 1 for by_modality in by_key.values()):
        if len(counts) > 1 and are_modalities(counts):
            of_each = {
                name: stem for by_modality in by_key.values() for name, stem in by_modality.items()
            }
            result.problems.append(
                f"images of several modalities, and no case with more than one: "
                f"{first_few(list(of_each.values()))}; take those of one with --images '*…'"
            )
        return dict(by_key), ()
    unsure = [
        list(by_modality.values())
        for by_modality in by_key.values()
        if len(by_modality) > 1 and not are_modalities(by_modality)
    ]
    if unsure:
        result.problems.append(
            f"{first_few(unsure[0])}: images of one case, or a label, or other patients? say it "
            "with --images '*…' for each modality, and --labels '*…'"
        )
    modalities = tuple(sorted(name for name, count in counts.items() if 2 * count >= len(by_key)))
    strays = [
        path_of[by_modality.pop(name)]
        for by_modality in by_key.values()
        for name in sorted(by_modality.keys() - set(modalities))
    ]
    result.leave_out(strays, "file", "left out, most cases have none of this name")
    return {key: by_modality for key, by_modality in by_key.items() if by_modality}, modalities


def _labels_by_key(
    images: list[str],
    labels: list[str],
    path_of: Mapping[str, str],
    options: InputOptions,
    result: LayoutMatch,
) -> dict[str, str]:
    """Return the label of each case; of several, the one that --label_name names."""
    _, words = role_words(images, labels)
    by_key: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for stem in sorted(labels):
        name = "_".join(piece for _, piece in pieces_of(stem) if piece.casefold() in words)
        other = by_key[plain(without(stem, words))].setdefault(name.casefold(), stem)
        if other != stem:
            result.problems.append(f"two labels for one image: {other} and {stem}")
    several = [by_name for by_name in by_key.values() if len(by_name) > 1]
    if not several or not options.label_name:
        if several:
            result.problems.append(
                f"{plural(len(several), 'case')} with several labels: "
                f"{first_few(list(several[0].values()))}; choose with --label_name "
                f"{next(iter(several[0]))}"
            )
        return {key: next(iter(by_name.values())) for key, by_name in by_key.items()}
    known = {name for by_name in several for name in by_name}
    chosen = choose_name(options.label_name, known)
    if chosen is None:
        result.problems.append(unknown_name("label_name", options.label_name, known))
    others = [
        path_of[stem]
        for by_name in by_key.values()
        for name, stem in by_name.items()
        if name != chosen
    ]
    result.leave_out(others, "label", f"left out, --label_name is {options.label_name}")
    return {key: by_name[chosen] for key, by_name in by_key.items() if chosen in by_name}
