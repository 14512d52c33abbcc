"""Which documents hang together: pairs that are alike -> connected components -> the one of each that stays.

    pairs -> star rounds, on as many machines as there are -> what is left of long chains, in one place -> components

A component is all that pairs connect, however long the chain. It goes by its smallest member, so it is the same in
whatever order the pairs come and on however many workers. Members are keys packed into bytes that sort by id and part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from jaxgpt.curation.document import Key, Verdict

Edge = tuple[bytes, bytes]  # the larger member, then the smaller
ID_BYTES = 16


def pack(key: Key) -> bytes:
    """The key as bytes that sort as (id, part) does: the 16 of the id, then the name of the part.

    Raises:
      ValueError: the id is not 32 hexadecimal digits.

    >>> unpack(pack(Key("page-7", "2cf24dba5fb0a30e26e83b2ac5b9e29e")))
    Key(part='page-7', id='2cf24dba5fb0a30e26e83b2ac5b9e29e')
    """
    try:
        digits = bytes.fromhex(key.id)
    except ValueError:
        digits = b""
    if len(digits) != ID_BYTES or digits.hex() != key.id:
        raise ValueError(f"id: must be 32 lower-case hexadecimal digits, not {key.id!r} (part {key.part!r})")
    return digits + key.part.encode()


def unpack(member: bytes) -> Key:
    """The key that `pack` packed."""
    return Key(member[ID_BYTES:].decode(), member[:ID_BYTES].hex())


class Forest:
    """Disjoint sets of nodes, each named by its smallest; new nodes are sets of their own.

    Source: Tarjan and van Leeuwen, "Worst-case analysis of set union algorithms" (1984), for path halving.

    >>> forest = Forest()
    >>> forest.join(3, 1)
    >>> forest.root(3), forest.root(2)
    (1, 2)
    """

    def __init__(self):
        self.parent = {}

    def root(self, node):
        """The smallest node of the set that holds this one."""
        while (above := self.parent.setdefault(node, node)) != node:
            self.parent[node] = self.parent[above]
            node = above
        return node

    def join(self, a, b) -> None:
        """Makes one set of the sets that hold a and b."""
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)


def union_find(edges: Iterable[tuple]) -> dict:
    """For each node that an edge touches the smallest node it is connected to, all in memory.

    >>> union_find([(3, 1), (5, 4), (4, 3)]) == {1: 1, 3: 1, 4: 1, 5: 1}
    True
    """
    forest = Forest()
    for a, b in edges:
        forest.join(a, b)
    return {node: forest.root(node) for node in forest.parent}


def star_edges(members: Iterable[bytes]) -> Iterator[Edge]:
    """The edges that connect members to the smallest of them: one fewer than there are, never all pairs.

    >>> list(star_edges([b"b", b"a", b"c"]))
    [(b'b', b'a'), (b'c', b'a')]
    """
    smallest = min(members)
    return ((member, smallest) for member in members if member != smallest)


def small_star(around: tuple[bytes, Iterable[bytes]]) -> Iterator[Edge]:
    """Connects a node and its smaller neighbours to the smallest of these.

    Source: Kiveris, Lattanzi, Mirrokni, Rastogi and Vassilvitskii, "Connected components in MapReduce and beyond"
    (2014), algorithm 3.

    >>> sorted(small_star((b"d", [b"c", b"a"])))
    [(b'c', b'a'), (b'd', b'a')]
    """
    node, smaller = around
    return star_edges({node, *smaller})


def large_star(around: tuple[bytes, Iterable[bytes]]) -> Iterator[Edge]:
    """Connects the larger neighbours of a node to the smallest of itself and all its neighbours.

    Source: Kiveris et al. (2014), algorithm 2.

    >>> list(large_star((b"b", [b"c", b"a", b"d"])))
    [(b'c', b'a'), (b'd', b'a')]
    """
    node, neighbours = around
    smallest = min(node, min(neighbours))
    return ((other, smallest) for other in neighbours if other > node)


def components(edges, *, rounds: int = 2):
    """The connected components of a graph, on Beam.

    A round of small and large stars halves the length of a chain; a cluster that is a star stays as it is. What the
    rounds leave, chains of more than 2^rounds links, is joined by `union_find` in one place, which takes about 400
    bytes of memory a document: so the result is exact for any graph. The counter "edges left to one place" says how
    many edges that were. Everywhere else a worker holds only the smaller neighbours of one node, at first one a band.

    Source: Kiveris et al. (2014), section 4.

    Args:
      edges: a PCollection of (larger, smaller) in any order, repeated or not.

    Returns:
      A PCollection of (smallest of the component, node): each node that an edge touches, once.
    """
    import apache_beam as beam

    for i in range(rounds):
        edges = (edges
                 | f"smaller neighbours {i}" >> beam.GroupByKey()
                 | f"small star {i}" >> beam.FlatMap(_small_star_both_ways).with_output_types(Edge)
                 | f"neighbours {i}" >> beam.GroupByKey()
                 | f"large star {i}" >> beam.FlatMap(large_star).with_output_types(Edge))
    around = (edges
              | "both ways" >> beam.FlatMap(_both_ways).with_output_types(Edge)
              | "neighbours" >> beam.GroupByKey())
    settled = (around
               | "edges left" >> beam.FlatMap(_edges_left).with_output_types(Edge)
               | "to one place" >> beam.WithKeys(0).with_output_types(tuple[int, Edge])
               | "one place" >> beam.GroupByKey()
               | "union-find" >> beam.FlatMap(lambda left: union_find(left[1]).items()).with_output_types(Edge))
    return (around
            | "parent" >> beam.Map(_parent).with_output_types(Edge)
            | "root" >> beam.Map(_root, beam.pvalue.AsDict(settled)).with_output_types(Edge))


def _both_ways(edge: Edge) -> tuple[Edge, Edge]:
    return edge, edge[::-1]


def _small_star_both_ways(around: tuple[bytes, Iterable[bytes]]) -> Iterator[Edge]:
    return (way for edge in small_star(around) for way in _both_ways(edge))


def _parent(around: tuple[bytes, Iterable[bytes]]) -> Edge:
    """(the only neighbour, the node) of a leaf; otherwise the node is its own parent."""
    node, neighbours = around
    first = next(iter(neighbours))
    is_leaf = first < node and all(other == first for other in neighbours)
    return (first if is_leaf else node), node


def _root(found: Edge, roots: Mapping[bytes, bytes]) -> Edge:
    parent, node = found
    return roots.get(parent, parent), node


def _edges_left(around: tuple[bytes, Iterable[bytes]]) -> Iterator[Edge]:
    """The edges of a node that is no leaf to its smaller neighbours; a star has none."""
    node, neighbours = around
    if _parent(around)[0] == node:
        for other in {other for other in neighbours if other < node}:
            count("edges left to one place")
            yield node, other


def verdicts_on(component: tuple[bytes, Iterable[bytes]]) -> Iterator[tuple[str, Verdict]]:
    """(part, verdict) for each member of a component, given by its smallest, which stays, and the others.

    >>> keys = Key("p", "0" * 32), Key("q", "f" * 32)
    >>> [(part, found.keep, found.cluster_size) for part, found in verdicts_on((pack(keys[0]), [pack(keys[1])]))]
    [('p', True, 2), ('q', False, 2)]
    """
    smallest, others = component
    size = 1 + sum(1 for _ in others)  # there may be too many to hold, but they can be read again
    part, cluster = unpack(smallest)
    yield part, Verdict(cluster, cluster=cluster, cluster_size=size)
    for other in others:
        key = unpack(other)
        yield key.part, Verdict(key.id, keep=False, cluster=cluster, cluster_size=size)


def count(what: str, amount: int = 1) -> None:
    """Adds to a counter that the run reports at its end, in the namespace "curation" of its metrics."""
    from apache_beam.metrics import Metrics

    Metrics.counter("curation", what).inc(amount)
