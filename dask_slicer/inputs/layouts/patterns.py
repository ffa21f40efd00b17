"""Patterns of images and labels, such as 'img/*.nii.gz': the options --images and --labels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import name_of, stem_of
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.layouts.bids_names import bids_file
from dask_slicer.inputs.layouts.bids_tables import ParticipantTables
from dask_slicer.inputs.layouts.split_folders import folders_of_splits
from dask_slicer.inputs.pairing import words_of_all
from dask_slicer.inputs.role_words import pieces_of, plain
from dask_slicer.inputs.tree import FileTree
from dask_slicer.utils.formatting import first_few, plural

_WILDCARD = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^]/]+\]")


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A pattern of an option, the files that match it, and what its wildcards match in each."""

    option: str
    glob: str
    matches: dict[str, tuple[str, ...]]  # by path

    def keys(self, kind: str) -> dict[tuple[str, ...], str]:
        """Return paths by what some wildcards match, as names are compared.

        The wildcards are all but ``**``, or all, or those of the file name.
        """
        wildcards = _WILDCARD.findall(self.glob)
        n_above = len(_WILDCARD.findall(self.glob.rpartition("/")[0] + "/"))
        numbers = [
            number
            for number, wildcard in enumerate(wildcards)
            if (number >= n_above if kind == "name" else kind == "all" or wildcard[:2] != "**")
        ]
        keys: dict[tuple[str, ...], str] = {}
        for path, parts in self.matches.items():
            keys.setdefault((f"{len(numbers)}", *(plain(parts[n]) for n in numbers)), path)
        return keys if len(keys) == len(self.matches) else {}

    def __str__(self) -> str:
        return f"--{self.option} '{self.glob}'"


def match(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Return the cases that the patterns of the options give; the rest is left out.

    The files of a case are those in which the wildcards match the same: all wildcards but ``**``;
    if that pairs too little or is not unique, all wildcards, or those of the file name. This text
    is the case id, with ``_`` between its parts.

    Raises
    ------
    DatasetError
        If a pattern matches nothing, two match one file, or no key fits all of them.
    """
    result = LayoutMatch("patterns")
    images = [_pattern("images", glob, tree) for glob in options.images]
    labels = [] if options.labels is None else [_pattern("labels", options.labels, tree)]
    for label in labels:
        images = [_without_labels(image, label, result) for image in images]
    _refuse_shared_files(images)
    keys = _keys([*images, *labels])
    label_of = keys[-1] if labels else {}
    image_keys = keys[: len(images)]
    texts = {
        key: pattern.matches[paths[key]]
        for pattern, paths in reversed(list(zip(images, image_keys, strict=True)))
        for key in paths
    }
    spelled = {key: _spelled(key, parts) for key, parts in texts.items()}
    # Folders that a file name repeats, such as a subject's, are needed only if ids would be equal.
    brief = {key: _brief(parts) for key, parts in spelled.items()}
    if len({"_".join(parts) for parts in brief.values()}) == len(spelled):
        spelled = brief
    split_of = folders_of_splits(path for paths in image_keys for path in paths.values())
    tables = ParticipantTables(tree)
    for key in dict.fromkeys(key for paths in image_keys for key in paths):
        known = next(paths[key] for paths in image_keys if key in paths)
        columns = tables.columns(image) if (image := bids_file(known)) is not None else {}
        label_path = label_of.get(key)
        result.add_case(
            "_".join(spelled[key]).strip(" _-.") or stem_of(name_of(known)).strip(),
            [
                tree.absolute(paths.get(key) or _filled(pattern.glob, key, texts[key]))
                for pattern, paths in zip(images, image_keys, strict=True)
            ],
            None if label_path is None else tree.absolute(label_path),
            split=split_of.get(known.partition("/")[0]),
            stated=True,
            columns={"participant_id": image.subject, **columns} if image and columns else {},
        )
    used = {path for paths in keys for path in paths.values()}
    unpaired = [path for key, path in label_of.items() if not any(key in k for k in image_keys)]
    result.leave_out(sorted(unpaired), "label", "without an image")
    why = (
        f"matches neither {' nor '.join(map(str, [*images, *labels]))}"
        if labels
        else (f"does not match {' or '.join(map(str, images))}")
    )
    for path in tree.volumes:
        if path not in used:
            result.left_out[path] = why
    result.channel_names = _channel_names(options.images)
    result.reason = " ".join(map(str, [*images, *labels]))
    if split_of:
        result.reason += f"; {', '.join(f'{name}/' for name in split_of)} give the splits"
    return result


def _pattern(option: str, glob: str, tree: FileTree) -> _Pattern:
    """Return a pattern with the files that match it."""
    relative = unicodedata.normalize("NFC", glob.replace("\\", "/"))
    relative = relative.removeprefix(f"{tree.root.as_posix()}/").removeprefix("./")
    regex = re.compile(_to_regex(relative))
    is_open = bool(re.search(r"(\*|\?|\])$", relative))
    matches = {}
    for path in tree.volumes:
        if same := regex.fullmatch(unicodedata.normalize("NFC", path)):
            parts = [part or "" for part in same.groups()]
            if is_open:  # the suffix is no part of the key
                parts[-1] = stem_of(parts[-1])
            matches[path] = tuple(parts)
    if not matches:
        volumes = first_few(tree.volumes) or "no volume at all"
        raise DatasetError(
            f"--{option} '{glob}' matches no volume in {tree.root}; there: {volumes}"
        )
    return _Pattern(option, relative, matches)


def _to_regex(glob: str) -> str:
    r"""Return a regular expression for a pattern, with a group for each wildcard.

    >>> _to_regex("**/img?_[!0]*.nii")
    '(?:(.*)/)?img([^/])_([^0])([^/]*)\\.nii'
    """
    regexes = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    text, end = "", 0
    for wildcard in _WILDCARD.finditer(glob):
        text += re.escape(glob[end : wildcard.start()])
        characters = wildcard[0].replace("[!", "[^").replace("\\", "")
        text += regexes.get(wildcard[0], f"({characters})")
        end = wildcard.end()
    return text + re.escape(glob[end:])


def _without_labels(image: _Pattern, label: _Pattern, result: LayoutMatch) -> _Pattern:
    """Return a pattern of images without the files that are labels, if all labels are such."""
    shared = image.matches.keys() & label.matches.keys()
    if not shared:
        return image
    if shared != label.matches.keys() or len(shared) == len(image.matches):
        raise DatasetError(
            f"{plural(len(shared), 'file')} matched by {image} and {label}: "
            f"{first_few(sorted(shared))}; make the patterns narrower"
        )
    result.notes.append(f"files that match {image} and {label} are labels")
    images = {path: parts for path, parts in image.matches.items() if path not in shared}
    return _Pattern(image.option, image.glob, images)


def _refuse_shared_files(images: Sequence[_Pattern]) -> None:
    for number, pattern in enumerate(images):
        for other in images[:number]:
            if shared := sorted(pattern.matches.keys() & other.matches.keys()):
                raise DatasetError(
                    f"{plural(len(shared), 'file')} matched by {other} and {pattern}: "
                    f"{first_few(shared)}; make the patterns narrower"
                )


def _keys(patterns: Sequence[_Pattern]) -> list[dict[tuple[str, ...], str]]:
    """Return the files of each pattern by the key of their case."""
    best: list[dict[tuple[str, ...], str]] = []
    most = 0
    for kind in ("single", "all", "name"):
        keys = [pattern.keys(kind) for pattern in patterns]
        n_shared = len(set.intersection(*(set(paths) for paths in keys)))
        if n_shared > most:
            best, most = keys, n_shared
        if n_shared == min(len(pattern.matches) for pattern in patterns):
            break
    if not best:
        seen = "; ".join(
            f"{pattern} matches {first_few(list(pattern.matches))}" for pattern in patterns
        )
        raise DatasetError(
            f"the wildcards give no key that is unique and the same in all patterns: {seen}; what "
            "varies from case to case must be a wildcard in each, and nothing else"
        )
    return best


def _spelled(key: tuple[str, ...], parts: tuple[str, ...]) -> list[str]:
    """Return the parts of a key, spelled as in the path of an image."""
    spelled = {plain(part): part for part in parts}
    words = [spelled.get(part, part).replace("/", "_").strip() for part in key[1:]]
    return [word for word in words if word]


def _brief(parts: Sequence[str]) -> list[str]:
    """Return parts without those that a longer part holds, and each once.

    >>> _brief(["sub-1", "ses-1", "sub-1_ses-1"])
    ['sub-1_ses-1']
    """
    return [
        part
        for part in dict.fromkeys(parts)
        if not any(
            other != part and re.search(rf"(?<![^\W_]){re.escape(part)}(?![^\W_])", other)
            for other in parts
        )
    ]


def _filled(glob: str, key: tuple[str, ...], texts: Iterable[str]) -> str:
    """Return the path that a pattern has for a key, if it has as many wildcards."""
    spelled = {plain(text): text for text in texts}
    parts = iter([spelled.get(part, part) for part in key[1:]])
    if len(_WILDCARD.findall(glob)) != len(key) - 1:
        return glob
    return _WILDCARD.sub(lambda wildcard: next(parts) + wildcard[0][2:], glob)


def _channel_names(globs: Sequence[str]) -> tuple[str, ...]:
    """Return names of modalities: the words of each pattern that not all have, if any.

    >>> _channel_names(["t1/*.nii.gz", "flair/*.nii.gz"]), _channel_names(["*.nii", "*_t2.nii"])
    (('t1', 'flair'), ())
    """
    if len(globs) < 2:
        return ()
    common = set.intersection(*(words_of_all([glob]) for glob in globs))
    names = [
        "_".join(piece for _, piece in pieces_of(glob) if piece and piece.casefold() not in common)
        for glob in globs
    ]
    return tuple(names) if all(names) and len(set(names)) == len(names) else ()
