"""What a compiled program sends between devices, read from its HLO text.

XLA's own cost analysis counts a loop's body once and a kernel as nothing; here each computation is counted as often as
it runs: the entry once, the body of a loop as often as its condition's bound says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32,
         "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|branch_computations|called_computations)"
                     r"=\{?((?:%[\w.-]+(?:, )?)+)\}?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind and size.

    Attributes:
      kind: one of KINDS.
      size: bytes of the whole result on one device: gathered, reduced (before scattering), exchanged or sent.
      group: how many devices take part in each.
      count: how often a device takes part in one during a run of the program.
    """

    kind: str
    size: int
    group: int
    count: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all, by the ring algorithm: (g-1)/g of the size, twice for an all-reduce."""
        passes = {"all-reduce": 2 * (self.group - 1) / self.group, "collective-permute": 1.0}
        return self.count * self.size * passes.get(self.kind, (self.group - 1) / self.group)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    text: str


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of an optimised HLO module, those that move most first.

    Args:
      text: of `compiled.as_text()`.
      devices: of the whole program, for groups that the text leaves out.
    """
    computations, entry = _parse(text)
    found: Counter = Counter()
    for name, times in _times(computations, entry).items():
        sizes = {instruction.name: _bytes(instruction.shape) for instruction in computations[name]}
        for instruction in computations[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            group = _group(instruction.text, devices)
            operands = sum(sizes.get(operand, 0) for operand in _operands(instruction.text, instruction.opcode))
            if kind == "all-reduce" and "reduce-scatter" in name:  # how a TPU writes it: a fusion that keeps one part
                kind = "reduce-scatter"
            if group > 1 or kind == "collective-permute":
                found[kind, operands * (group if kind == "all-gather" else 1), group] += times
    listed = [Collective(kind, size, group, count) for (kind, size, group), count in found.items()]
    return sorted(listed, key=lambda collective: -collective.sent)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    current = entry = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            current = re.match(r"(?:ENTRY )?%?([\w.-]+)", line)[1]
            computations[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current and (match := _INSTRUCTION.match(line)):
            opcode = _OPCODE.search(match[2])
            if opcode:
                shape = match[2][:opcode.start()]
                computations[current].append(_Instruction(match[1], shape, opcode[1], match[2]))
    return computations, entry


def _times(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs; both branches of a conditional count as taken."""
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, instructions in computations.items():
        for instruction in instructions:
            if instruction.opcode.endswith(("-done", "-update")):
                continue
            called = {kind: re.findall(r"%([\w.-]+)", names) for kind, names in _CALLED.findall(instruction.text)}
            times = _trip_count(instruction, called, computations) if instruction.opcode == "while" else 1
            for kind, names in called.items():
                if kind != "to_apply" or instruction.opcode == "call":
                    calls[name] += [(callee, times) for callee in names if callee in computations]

    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for caller, callees in calls.items():
        for callee, times in callees:
            callers[callee].append((caller, times))

    @functools.cache
    def runs(name: str) -> int:
        return 1 if name == entry else sum(runs(caller) * times for caller, times in callers[name])

    return {name: times for name in computations if (times := runs(name))}


def _trip_count(instruction: _Instruction, called: dict, computations: dict) -> int:
    """The bound of a loop: what XLA says it knows, else the largest number that the condition compares with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.text)
    if known:
        return int(known[1])
    numbers = [int(found[1]) for condition in called.get("condition", ()) for part in computations.get(condition, ())
               if part.opcode == "constant" and (found := re.search(r"constant\((\d+)\)", part.text))]
    return max(numbers, default=1)


def _operands(text: str, opcode: str) -> list[str]:
    inside = text[text.index(opcode + "(") + len(opcode) + 1:]
    return re.findall(r"%([\w.-]+)", inside[:inside.index(")")])


def _bytes(shape: str) -> int:
    total = 0
    for kind, dimensions in _ARRAY.findall(shape):
        bits = _BITS.get(kind, 8 if kind.startswith("f8") else 0)
        total += math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8
    return total


def _group(text: str, devices: int) -> int:
    """How many devices are in each group: {{0,1},{2,3}}, [groups,size]<=[...] or mesh['a'=2,'b'=4] {'a'}."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2]) if axis in sizes)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found[1].split(","))
    return devices
