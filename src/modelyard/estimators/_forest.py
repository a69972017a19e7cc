"""Decision trees as flat arrays, and the two ways of running them in NumPy.

`score` ANDs bit masks over features, as QuickScorer does (Lucchese et al. 2015, "QuickScorer: a fast algorithm to rank documents
with additive ensembles of regression trees"), but whole batches at a time: the leaves of a tree are the bits of an integer, a
node that sends the row right clears the leaves of its left subtree, and the lowest bit left is the row's leaf. Which nodes of a
feature send right depends only on the number of thresholds below the value (or on the category), so each feature has one table
of masks (its threshold intervals or categories × trees) and a row costs one look-up a feature for all trees together. With 900 trees of 31 leaves this is
some ten times faster than walking. `walk` takes over for forests that are too wide, too large or have over 64 leaves a tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

MASKS_LIMIT = 128 * 2**20
"""Bytes of mask tables beyond which trees are walked instead."""

FEATURES_LIMIT = 150
"""Used features beyond which walking (depth × trees steps) beats one look-up a feature and tree."""


@dataclass
class Forest:
    """All trees of one output as flat arrays; a node's children are node numbers, a leaf points to itself.

    Nodes of a tree follow each other in preorder: node, left subtree, right subtree.
    """

    feature: np.ndarray
    threshold: np.ndarray
    """float32; a value `x <= threshold` goes left."""
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    """Where NaN goes."""
    value: np.ndarray
    """Leaf values, float64; 0 at inner nodes."""
    roots: np.ndarray
    column: np.ndarray
    """The output column that each tree adds to."""
    base: np.ndarray
    """(columns,) added at the end."""
    depth: int = 0
    choice: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """By node, the number of the set of categories that go left; -1 where the threshold decides. Empty: all -1."""
    members: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """Category ids of all sets, each set increasing; an id in no set goes right."""
    bounds: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    """Set i is `members[bounds[i]:bounds[i + 1]]`."""
    leaves: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """Where not empty, `value` of a leaf is a row of this table `(L, columns)`, and every tree adds its row to all columns."""

    def __post_init__(self) -> None:
        if not len(self.choice):
            self.choice = np.full(len(self.feature), -1, np.int32)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, int]:
        """(set × width + id of every member, increasing; width): membership is one binary search."""
        width = int(self.members.max(initial=0)) + 1
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds)) * width + self.members, width

    def holds(self, sets: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Whether each set (by number) has the id (float32) beside it."""
        keys, width = self.pairs
        known = (ids >= 0) & (ids < width)
        wanted = sets * width + np.where(known, ids, 0).astype(np.int64)
        return known & (keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted)

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """What `walk` takes numbers of nodes to: (feature, children), int64, so that no look-up converts. Child `2 i + 1` is left."""
        children = np.empty(2 * len(self.feature), np.int64)
        children[0::2], children[1::2] = self.right, self.left
        return self.feature.astype(np.int64), children

    @cached_property
    def masks(self) -> Masks | None:
        """The tables of `score`, made once for a loaded forest; None where trees must be walked."""
        return Masks.of(self)


@dataclass
class Masks:
    """Bit masks of a forest, its trees sorted by output column."""

    features: np.ndarray
    """Used features."""
    thresholds: list[np.ndarray | None]
    """By used feature, float32, increasing; None for categories."""
    tables: list[np.ndarray]
    """By used feature, unsigned. Numbers, `(thresholds + 2, T)`: masks by number of thresholds below the value; the last row is for
    NaN. Categories, `(ids + 1, T)`: masks by id; the last row is for ids in no set."""
    values: np.ndarray
    """Leaf values of all trees, float64, in leaf order."""
    first: np.ndarray
    """(T,) position of a tree's first leaf in `values`."""
    starts: np.ndarray
    """First tree of each output column that has any."""
    columns: np.ndarray
    """Those output columns."""

    @classmethod
    def of(cls, forest: Forest) -> Masks | None:
        """None where the tables would not pay."""
        order = np.argsort(forest.column, kind="stable")
        bounds = np.append(forest.roots, len(forest.feature))
        tree = np.repeat(np.argsort(order, kind="stable"), np.diff(bounds))
        leaf = forest.left == np.arange(len(forest.feature))
        before = np.cumsum(leaf) - leaf  # leaves of the forest before each node: a subtree's leaves follow each other
        leaves = np.diff(np.append(before[forest.roots], leaf.sum()))
        inner = np.flatnonzero(~leaf)
        features, which = np.unique(forest.feature[inner], return_inverse=True)
        if leaves.max(initial=1) > 64 or len(features) > FEATURES_LIMIT:
            return None
        word = np.uint32 if leaves.max(initial=1) <= 32 else np.uint64
        ones = np.iinfo(word).max
        offset = before[np.repeat(forest.roots, np.diff(bounds))][inner]
        low, high = before[forest.left[inner]] - offset, before[forest.right[inner]] - offset
        # bits low … high-1; high - low is at most 63 because the right subtree has a leaf
        cleared = ~(((np.uint64(1) << (high - low).astype(np.uint64)) - np.uint64(1)) << low.astype(np.uint64))
        nodes = [inner[which == i] for i in range(len(features))]
        found = [None if (forest.choice[mine] >= 0).all() else np.unique(forest.threshold[mine]) for mine in nodes]
        height = sum(forest.pairs[1] + 1 if t is None else len(t) + 2 for t in found)
        if height * len(order) * np.dtype(word).itemsize > MASKS_LIMIT:
            return None
        tables = []
        for i, thresholds in enumerate(found):
            mine, masks, owner = nodes[i], cleared[which == i].astype(word), tree[nodes[i]]
            if thresholds is None:
                tables.append(_by_category(forest, mine, masks, owner))
                continue
            table = np.full((len(thresholds) + 2, len(order)), ones, word)
            np.bitwise_and.at(table, (np.searchsorted(thresholds, forest.threshold[mine]) + 1, owner), masks)
            np.bitwise_and.accumulate(table[:-1], axis=0, out=table[:-1])
            away = ~forest.missing_left[mine]
            np.bitwise_and.at(table[-1], owner[away], masks[away])
            tables.append(table)
        starts = np.flatnonzero(np.diff(forest.column[order], prepend=-1))
        return cls(features, found, tables, forest.value[leaf], before[forest.roots][order], starts, forest.column[order][starts])


def _by_category(forest: Forest, nodes: np.ndarray, masks: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """`(ids + 1, T)` masks of one category feature."""
    first, last = forest.bounds[forest.choice[nodes]], forest.bounds[forest.choice[nodes] + 1]
    size = int(max(forest.members[end - 1] for end in last)) + 1
    table = np.full((len(forest.roots), size + 1), np.iinfo(masks.dtype).max, masks.dtype)
    for start, end, mask, t in zip(first, last, masks, owner, strict=True):
        stays = np.full(size + 1, mask, masks.dtype)
        stays[forest.members[start:end]] = np.iinfo(masks.dtype).max
        table[t] &= stays
    return np.ascontiguousarray(table.T)


def score(x: np.ndarray, forest: Forest) -> np.ndarray:
    """Raw scores `(B, columns)` in float64 of float32 features `x` `(B, F)`."""
    if forest.masks is None:
        return walk(x, forest)
    masks = forest.masks
    out = np.tile(forest.base, (len(x), 1))
    trees = len(masks.first)
    if not trees:
        return out
    step = max(1, 200_000 // trees)  # masks of a block of rows stay in the cache
    for low in range(0, len(x), step):
        rows = x[low : low + step]
        alive = np.full((len(rows), trees), -1, np.int64).astype(masks.tables[0].dtype if masks.tables else np.uint32)
        for f, thresholds, table in zip(masks.features, masks.thresholds, masks.tables, strict=True):
            value = rows[:, f]
            if thresholds is None:
                last = len(table) - 1
                bins = np.where((value >= 0) & (value < last), value, last).astype(np.int64)
            else:
                bins = np.where(np.isnan(value), len(thresholds) + 1, np.searchsorted(thresholds, value))
            alive &= table.take(bins, axis=0)
        found = masks.values[masks.first + _lowest(alive)]
        if len(forest.leaves):
            out[low : low + step] += _rows(forest.leaves, found.T)
        else:
            out[low : low + step, masks.columns] += np.add.reduceat(found, masks.starts, axis=1)
    return out


def _lowest(bits: np.ndarray) -> np.ndarray:
    """Number of the lowest set bit: the exponent of that bit as a float."""
    only = bits & (~bits + bits.dtype.type(1))
    if bits.dtype == np.uint32:
        return (only.astype(np.float32).view(np.int32) >> 23) - 127
    return (only.astype(np.float64).view(np.int64) >> 52) - 1023


def _rows(leaves: np.ndarray, found_TB: np.ndarray) -> np.ndarray:
    """Sums (B, columns) of the rows of vector leaves that the trees arrived at."""
    out = np.zeros((found_TB.shape[1], leaves.shape[1]))
    for row_B in found_TB:  # one tree after the other: (T, B, columns) would not fit into the cache
        out += leaves.take(row_B.astype(np.int64), axis=0)
    return out


def walk(x: np.ndarray, forest: Forest) -> np.ndarray:
    """The same as `score`, for trees of any size: rows walk down, a few trees and a level at a time, and leave at their leaf."""
    out = np.tile(forest.base, (len(x), 1))
    trees = len(forest.roots)
    if not trees:
        return out
    order = np.argsort(forest.column, kind="stable")
    starts = np.flatnonzero(np.diff(forest.column[order], prepend=-1))
    step = min(8192, max(64, 4_000_000 // trees))  # leaves of a block of rows: at most 32 MB
    for low in range(0, len(x), step):
        rows = np.ascontiguousarray(x[low : low + step])
        together = max(1, 32_768 // len(rows))  # trees whose rows walk at once: fewer calls for few rows, nodes in the cache for many
        ends = [_descend(rows, forest, forest.roots[order[i : i + together]]) for i in range(0, trees, together)]
        found_TB = forest.value.take(np.concatenate(ends))
        if len(forest.leaves):
            out[low : low + step] += _rows(forest.leaves, found_TB)
        else:
            out[low : low + step, forest.column[order][starts]] += np.add.reduceat(found_TB, starts, axis=0).T
    return out


def _descend(rows: np.ndarray, forest: Forest, roots: np.ndarray) -> np.ndarray:
    """Leaves (trees, B) that `rows` reach from `roots`."""
    feature, children = forest.steps
    flat, gaps, sets = rows.reshape(-1), bool(np.isnan(rows).any()), len(forest.members) > 0
    node = np.repeat(roots.astype(np.int64), len(rows))
    who = np.tile(np.arange(len(rows)) * rows.shape[1], len(roots))
    ends, place = np.empty(len(node), np.int64), np.arange(len(node))
    for level in range(forest.depth + 1):
        if level % 3 == 0:  # leaves point to themselves, so that leaving late is only slower
            still = children.take(2 * node) != node
            if not still.all():
                done = ~still
                ends[place[done]] = node[done]
                node, who, place = node[still], who[still], place[still]
                if not len(node):
                    break
        value = flat.take(who + feature.take(node))
        left = value <= forest.threshold.take(node)
        if gaps:
            left |= np.isnan(value) & forest.missing_left.take(node)
        if sets:
            chosen = forest.choice.take(node) >= 0
            left[chosen] = forest.holds(forest.choice.take(node[chosen]), value[chosen])
        node = children.take(2 * node + left)
    ends[place] = node
    return ends.reshape(len(roots), len(rows))


def read(texts: list[str], columns: int) -> Forest:
    """The forest of LightGBM models in LightGBM's own text form; leaf values are divided by the number of models.

    `columns` is the number of classes (1 for a single score): tree i of a model adds to column i modulo `columns`.
    """
    blocks = [(i % columns, block) for text in texts for i, block in enumerate(_blocks(text))]
    return join([_tree(block, k, 1.0 / len(texts)) for k, block in blocks], columns)


def _blocks(text: str) -> list[dict[str, str]]:
    """The key=value lines of every tree."""
    blocks = text.split("end of trees")[0].split("\nTree=")[1:]
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]


def _tree(block: Mapping[str, str], column: int, scale: float) -> Forest:
    """A forest of one tree."""
    leaves = np.array(block["leaf_value"].split(), np.float64) * scale
    keys = ("split_feature", "decision_type", "left_child", "right_child")
    # a tree of one leaf has none of these lines, or empty ones
    feature, kind, left, right = (np.array(block.get(k, "").split() if len(leaves) > 1 else [], np.int64) for k in keys)
    threshold = np.array(block["threshold"].split() if len(leaves) > 1 else [], np.float64)
    order, depth = _preorder(left.tolist(), right.tolist())
    inner = len(feature)
    place = np.empty(len(order), np.int64)  # of inner node i at i, of leaf j at inner + j
    place[order] = np.arange(len(order))
    members, bounds = _sets(block)
    types = (np.int32, np.float32, np.int32, np.int32, bool, np.float64, np.int32)
    nodes = [np.zeros(len(order), t) for t in types]
    nodes[2][:] = nodes[3][:] = np.arange(len(order))
    nodes[4][:], nodes[6][:] = True, -1
    by_set = kind & 1 == 1  # then `threshold` is the number of the set
    # without missing values in training LightGBM reads NaN as zero
    missing_left = np.where((kind >> 2) & 3 == 2, kind & 2 != 0, threshold >= 0) & ~by_set
    at = lambda child: place[np.where(child >= 0, child, inner + ~child)]  # noqa: E731
    values = (feature, np.where(by_set, 0, rounded_down(threshold)), at(left), at(right), missing_left)
    for array, value in zip(nodes, values, strict=False):
        array[place[:inner]] = value
    nodes[5][place[inner:]] = leaves
    nodes[6][place[:inner]] = np.where(by_set, threshold, -1)
    one = np.zeros(1, np.int32)
    a, b, c, d, e, f, choice = nodes
    return Forest(a, b, c, d, e, f, one, one + np.int32(column), np.zeros(column + 1), depth, choice, members, bounds)


def _sets(block: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """(members, bounds) of a tree's sets of categories, which LightGBM writes as bits of 32-bit words."""
    if int(block.get("num_cat", "0")) == 0:
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    words = np.array(block["cat_threshold"].split(), np.uint32).astype("<u4")
    edges = [int(w) for w in block["cat_boundaries"].split()]
    bits = [np.unpackbits(words[a:b].view(np.uint8), bitorder="little") for a, b in itertools.pairwise(edges)]
    sets = [np.flatnonzero(b).astype(np.int32) for b in bits]
    return np.concatenate(sets), np.cumsum([0, *map(len, sets)])


def _preorder(left: list[int], right: list[int]) -> tuple[np.ndarray, int]:
    """(nodes in preorder, leaf j as `inner + j`; depth) of LightGBM's children lists, where leaf j is written ~j."""
    order: list[int] = []
    depth, stack = 0, [(0 if left else -1, 0)]
    while stack:
        node, deep = stack.pop()
        depth = max(depth, deep)
        if node < 0:
            order.append(len(left) + ~node)
        else:
            order.append(node)
            stack += [(right[node], deep + 1), (left[node], deep + 1)]
    return np.array(order, np.int64), depth


def rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """The largest float32 not above each threshold: for every float32 x, `x <= t` is unchanged."""
    with np.errstate(over="ignore"):
        found = thresholds.astype(np.float32)
        down = np.where(found.astype(np.float64) > thresholds, np.nextafter(found, np.float32(-math.inf)), found)
    return down.astype(np.float32)


def join(forests: list[Forest], columns: int) -> Forest:
    """One forest of several, each keeping its output columns."""
    cat = lambda name: np.concatenate([getattr(f, name) for f in forests])  # noqa: E731
    counts = [len(f.feature) for f in forests]
    first = lambda sizes: np.repeat(np.cumsum([0, *sizes[:-1]]), counts)  # noqa: E731
    shift = first(counts)
    sets = first([len(f.bounds) - 1 for f in forests])
    roots = np.concatenate([f.roots + s for f, s in zip(forests, np.cumsum([0, *counts[:-1]]), strict=True)])
    bounds = np.cumsum([0, *np.concatenate([np.diff(f.bounds) for f in forests])])
    choice = cat("choice")
    value = cat("value")
    if len(forests[0].leaves):
        value = value + first([len(f.leaves) for f in forests])
    return Forest(
        cat("feature"), cat("threshold"), (cat("left") + shift).astype(np.int32), (cat("right") + shift).astype(np.int32),
        cat("missing_left"), value, roots.astype(np.int32), cat("column"), np.zeros(columns), max(f.depth for f in forests),
        np.where(choice >= 0, choice + sets, -1).astype(np.int32), cat("members"), bounds.astype(np.int64), cat("leaves"),
    )  # fmt: skip
