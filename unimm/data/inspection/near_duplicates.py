"""Near-duplicates among images: a perceptual hash of each, and groups of images whose hashes nearly agree.

The hash is the difference hash (dHash, N. Krawetz 2013): is a pixel of a tiny grey image brighter than its right neighbour,
than the one below it? That is 128 bits, which other sizes, formats and qualities of an image hardly change. Images that differ
in colour alone have the same bits, so a 4 x 4 colour thumbnail is compared, too. Two images are near-duplicates where at most
`MAX_BITS` bits differ and no value of the thumbnails by more than `MAX_COLOUR`.

Pairs are found without comparing all: where at most 7 of 128 bits differ, one of eight bands of 16 bits is equal. Images that
share a band are sorted by their hash, and each is compared with the next `NEIGHBOURS`. In a crowd of images that all share a
band, such as thousands on one background, pairs further apart in this order are missed; equal hashes stand together.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 8
"""The hash compares 8 x 8 pixels with their neighbours."""

STEP = 2
"""Levels of 255 by which a pixel has to be brighter: noise in flat areas sets no bits."""

THUMBNAIL = 4
"""Height and width of the colour thumbnail."""

BANDS = 8
MAX_BITS = BANDS - 1
MAX_COLOUR = 24
"""Of 255: the largest difference of a thumbnail's value between near-duplicates."""

NEIGHBOURS = 32

_ONES = np.array([bin(number).count("1") for number in range(1 << 16)], dtype=np.uint8)


class Fingerprint(NamedTuple):
    """What is compared of an image: bits (8,) uint16, colours (48,) uint8."""

    bits: np.ndarray
    colours: np.ndarray


def fingerprint(picture: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image."""
    tiny = picture.resize((SIDE + 1, SIDE + 1), Image.Resampling.BILINEAR, reducing_gap=3.0)
    grey = np.asarray(tiny.convert("L")).astype(np.int16)
    across, down = grey[:SIDE, :SIDE] > grey[:SIDE, 1:] + STEP, grey[:SIDE, :SIDE] > grey[1:, :SIDE] + STEP
    bits = np.packbits(np.concatenate([across, down]).ravel()).view(np.uint16)
    colours = np.asarray(tiny.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()
    return Fingerprint(bits, colours)


def duplicate_groups(bits: np.ndarray, colours: np.ndarray) -> list[np.ndarray]:
    """Groups of near-duplicates, largest first: places of images, in order.

    Images are in one group where a chain of near-duplicates leads from one to the other.

    Args:
        bits: (n, 8) uint16. colours: (n, 48) uint8.
    """
    if len(bits) < 2:
        return []
    pairs = np.concatenate([_pairs(bits, colours, band) for band in range(BANDS)])
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(len(bits), len(bits)))
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), int(group[0])))


def _pairs(bits: np.ndarray, colours: np.ndarray, band: int) -> np.ndarray:
    """Near-duplicates (m, 2) among images whose band is equal and that are near each other in the order of their hashes."""
    others = [bits[:, (band + step) % BANDS] for step in range(BANDS)]
    order = np.lexsort(others[::-1])
    found = [np.empty((0, 2), dtype=np.int64)]
    for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
        one, other = order[:-step], order[step:]
        same = bits[one, band] == bits[other, band]
        if not same.any():
            break  # bands are sorted: further apart there are none either
        one, other = one[same], other[same]
        near = _ONES[bits[one] ^ bits[other]].sum(1) <= MAX_BITS
        one, other = one[near], other[near]
        alike = np.abs(colours[one].astype(np.int16) - colours[other]).max(1, initial=0) <= MAX_COLOUR
        found.append(np.stack([one[alike], other[alike]], axis=1))
    return np.concatenate(found)
