"""Count the bytes that an XLA program reads and writes, in the text of its optimised HLO.

Results of instructions in the main computation are stored in memory, and values inside a fusion are
not. So each instruction of the main computation reads its operands and writes its result, and the
sum is what the program moves. XLA's own cost analysis does not support all targets, and it counts
the operands of fusions differently on each target.

The count does not include caches, padded layouts, or operands that a backend reads twice in a
fusion.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Their results are in memory already, or are only renamed.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-done", "async-done", "partition-id", "replica-id", "add-dependency", "opt-barrier"),
}
# These read as much of their first operand as they return.
_TAKES_PART = {"gather", "dynamic-slice", "slice"}
# These write into their first operand, in place, the size of this operand.
_PUTS_PART = {"dynamic-update-slice": 1, "scatter": 2}
_CALLS = {"fusion", "call", "async-start"}

_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+\w*)\[([\d,]*)\]")


class Array(NamedTuple):
    """The number of elements of a value, and the bytes of one element."""

    entries: int
    itemsize: float

    @property
    def bytes(self) -> float:
        """Bytes of the array."""
        return self.entries * self.itemsize


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    opcode: str
    results: list[Array]  # several for a tuple
    operands: list[str]
    called: str | None
    rest: str  # the line, from the operands on

    @property
    def entries(self) -> int:
        """Number of elements of the result."""
        return max((array.entries for array in self.results), default=0)


class Traffic(NamedTuple):
    """Bytes that one instruction of the main computation reads and writes."""

    instruction: str
    read: float
    written: float


Computation = dict[str, Instruction]  # in order, the root is last


class Program:
    """An HLO module.

    Parameters
    ----------
    text
        The result of ``jax.jit(f).lower(...).compile().as_text()``.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                computation = self.computations[header[2]] = {}
                if header[1]:
                    self.main = computation
            elif found := _INSTRUCTION.match(line):
                instruction = _instruction(*found.groups()[1:])
                computation[instruction.name] = instruction

    def traffic(self) -> Iterator[Traffic]:
        """Yield every instruction that reads or writes memory."""
        for instruction in self.main.values():
            if instruction.opcode in _FREE:
                continue
            if instruction.opcode in {"while", "conditional"}:
                msg = f"{instruction.opcode}: how often it runs is not counted here"
                raise NotImplementedError(msg)
            needs = self._needs(self.main, instruction, instruction.entries)
            read = sum(
                min(need, array.entries) * array.itemsize
                for name, need in zip(instruction.operands, needs, strict=True)
                for array in self.main[name].results
            )
            yield Traffic(instruction.name, read, self._written(self.main, instruction))

    def moved(self) -> tuple[float, float]:
        """Bytes read and written by all instructions."""
        found = list(self.traffic())
        return sum(t.read for t in found), sum(t.written for t in found)

    def _needs(
        self, computation: Computation, instruction: Instruction, wanted: float
    ) -> list[float]:
        """Number of elements of each operand that are read for `wanted` elements of the result."""
        if instruction.opcode in _CALLS and instruction.called:
            return self._needs_of_parameters(self.computations[instruction.called])
        sizes = [computation[name].entries for name in instruction.operands]
        needs = [wanted * max(1.0, size / max(1, instruction.entries)) for size in sizes]
        if instruction.opcode in _TAKES_PART:
            needs[0] = wanted
        elif instruction.opcode in _PUTS_PART:
            needs[0] = 0.0
        return needs

    def _needs_of_parameters(self, computation: Computation) -> list[float]:
        """Number of elements of each parameter that are read for the whole result."""
        *_, root = computation.values()
        wanted = {root.name: float(root.entries)}
        parameters = {}
        for name, instruction in reversed(computation.items()):
            entries = min(wanted.get(name, 0.0), instruction.entries)
            if instruction.opcode == "parameter":
                parameters[int(instruction.rest.partition(")")[0])] = entries
            needs = self._needs(computation, instruction, entries)
            for operand, need in zip(instruction.operands, needs, strict=True):
                wanted[operand] = wanted.get(operand, 0.0) + need
        return [parameters[i] for i in sorted(parameters)]

    def _written(self, computation: Computation, instruction: Instruction) -> float:
        if instruction.opcode in _PUTS_PART:
            part = instruction.operands[_PUTS_PART[instruction.opcode]]
            return sum(array.bytes for array in computation[part].results)
        if instruction.opcode == "copy-start":  # its results include its operand
            return instruction.results[0].bytes
        if instruction.opcode in _CALLS and instruction.called:
            computation = self.computations[instruction.called]
            instruction = list(computation.values())[-1]
            if instruction.opcode == "tuple":
                parts = [computation[name] for name in instruction.operands]
                return sum(self._written(computation, part) for part in parts)
            return self._written(computation, instruction)
        return sum(array.bytes for array in instruction.results)


def _instruction(name: str, types: str, opcode: str, rest: str) -> Instruction:
    end = _closing(rest)
    called = re.search(r"\b(?:calls|to_apply)=%([\w.\-]+)", rest[end:])
    return Instruction(
        name,
        opcode,
        [_array(*found) for found in _ARRAY.findall(types)],
        re.findall(r"%([\w.\-]+)", rest[:end]),
        called[1] if called else None,
        rest,
    )


def _closing(text: str) -> int:
    """Position of the parenthesis that closes one opened before the text."""
    depth = 1
    for i, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return i
    return len(text)


def _array(dtype: str, shape: str) -> Array:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D*(\d+).*", r"\1", dtype))
    return Array(math.prod(int(n) for n in shape.split(",") if n), bits / 8)
