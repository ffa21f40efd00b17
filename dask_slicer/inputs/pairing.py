"""Pairs of images and labels by what varies in their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from dask_slicer.inputs.role_words import image_words, label_words, pieces_of, plain, without

_FIRST_CHANNEL = "_0000"


@dataclass(frozen=True, slots=True)
class Pairing:
    """The image of each label, and the rule that gives it."""

    image_of: dict[str, str]  # image by label
    rule: str = "by name"


def pair(images: Collection[str], labels: Collection[str]) -> Pairing:
    """Return the image of each label, by their names without suffixes.

    These rules are tried, and the first that gives every label an image of its own is taken, else
    the one that gives the most:

    - names are equal;
    - names are equal without the words for label or image that tell the two kinds apart, and
      without the _0000 that all images end in;
    - names are equal without words that all labels share and no image has, or the reverse.

    Numbers are compared as they are written: 1 and 01 differ. A label that fits several images, or
    several labels that fit an image, have no pair.

    >>> pair(["volume-0", "volume-1"], ["segmentation-1"]).image_of
    {'segmentation-1': 'volume-1'}
    >>> pair(["anna_1"], ["bert_1"]).image_of
    {}
    """
    best = Pairing({})
    for rule, image_keys, label_keys in _keys(sorted(images), sorted(labels)):
        image_of = pair_keys(image_keys, label_keys)
        if len(image_of) > len(best.image_of):
            best = Pairing(image_of, rule)
        if len(best.image_of) == len(labels):
            break
    return best


def pair_keys(image_keys: Mapping[str, str], label_keys: Mapping[str, str]) -> dict[str, str]:
    """Return the image of each label whose key one image, and no other label, has."""
    image_by_key = _by_unique_key(image_keys)
    return {
        label: image_by_key[key]
        for key, label in _by_unique_key(label_keys).items()
        if key in image_by_key
    }


def _by_unique_key(keys: Mapping[str, str]) -> dict[str, str]:
    counts = Counter(keys.values())
    return {key: name for name, key in keys.items() if counts[key] == 1}


def role_words(images: Collection[str], labels: Collection[str]) -> tuple[set[str], set[str]]:
    """Return the words for images, and those for labels, that tell the two kinds apart.

    A word that both kinds have does not: ct_1_image and mr_1_label are not of one case.

    >>> role_words(["ct_1_image", "mr_1_image"], ["ct_1_label", "mr_1_label"])
    ({'image'}, {'label'})
    """
    of_images, of_labels = words_of_all(images), words_of_all(labels)
    return (
        set().union(*map(image_words, images)) - of_labels,
        label_words(of_labels) - of_images,
    )


def _role_keys(images: list[str], labels: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names of images and of labels without the words that tell these kinds apart."""
    of_images, of_labels = role_words(images, labels)
    has_channel = all(name.endswith(_FIRST_CHANNEL) for name in images) and not any(
        name.endswith(_FIRST_CHANNEL) for name in labels
    )
    channel = _FIRST_CHANNEL if has_channel else ""
    return (
        {name: plain(without(name.removesuffix(channel), of_images)) for name in images},
        {name: plain(without(name, of_labels)) for name in labels},
    )


def _keys(
    images: list[str], labels: list[str]
) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """Yield rules, each with the keys of images and of labels by which they pair."""
    image_names = {name: plain(name) for name in images}
    label_names = {name: plain(name) for name in labels}
    yield "by name", image_names, label_names
    yield "by name without words for image and label", *_role_keys(images, labels)
    if extra := _shared_words(labels) - words_of_all(images):
        shorter = {name: plain(without(name, extra)) for name in labels}
        if len(labels) == 1:  # what it shares with itself may be the name of a patient
            shorter = {name: key for name, key in shorter.items() if plain(name).startswith(key)}
        yield f"by name without {', '.join(sorted(extra))}", image_names, shorter
    if extra := _shared_words(images) - words_of_all(labels):
        shorter = {name: plain(without(name, extra)) for name in images}
        if len(images) == 1:
            shorter = {name: key for name, key in shorter.items() if plain(name).startswith(key)}
        yield f"by name without {', '.join(sorted(extra))}", shorter, label_names


def words_of_all(names: Collection[str]) -> set[str]:
    """Return the words, in lower case, that any of some names has."""
    return {piece.casefold() for name in names for _, piece in pieces_of(name) if piece}


def _shared_words(names: Collection[str]) -> set[str]:
    """Return the words without digits, and the words for images, that all of some names have."""
    shared = set.intersection(*(words_of_all([name]) for name in names)) if names else set()
    for_images = set().union(*map(image_words, names))
    return {word for word in shared if word in for_images or word.isalpha()}


def choose_name(name: str, known: Collection[str]) -> str | None:
    """Return the name that a user means: as it is, in another case, or by its last part.

    >>> known = ("pre/FLAIR", "pre/T1", "orig/T1")
    >>> choose_name("pre/t1", known), choose_name("flair", known), choose_name("T1", known)
    ('pre/T1', 'pre/FLAIR', None)
    """
    if name in known:
        return name
    wanted = plain(name)
    by_case = [other for other in known if plain(other) == wanted]
    by_end = [
        other
        for other in known
        if plain(other).endswith(wanted) and not plain(other)[: -len(wanted)][-1:].isalnum()
    ]
    for matches in (by_case, by_end):
        if len(matches) == 1:
            return matches[0]
    return None
