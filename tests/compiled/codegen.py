"""Python for the blocks of a kernel: one function per block, whose variables are arrays over the threads of a batch.

`block(M, R, m)` runs on the machine M for the threads of the mask m (None: all). Registers that more than one block
uses are in the list R between blocks. It returns the next block, or after a branch that parts the threads
`(mask, block, other mask, other block)`; `END` at the end of the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.compiled.arithmetic import NUMPY, SHORT, canonical, width
from tests.compiled.meanings import ACTIONS, ARITHMETIC, COMPARISONS
from tests.compiled.ptx import Address, Fault, Group, Instruction, Kernel, Name, Number, Register

END = -1
SHARED_START = 1024
"""Address of the first byte of shared memory: address 0 is nobody's."""
SPECIAL = {
    "%tid.x": "M.tid", "%laneid": "M.lane", "%warpid": "M.warp_in_program", "%tid.y": "M.zero", "%tid.z": "M.zero",
    "%ctaid.x": "M.program[0]", "%ctaid.y": "M.program[1]", "%ctaid.z": "M.program[2]", "%clusterid.x": "M.program[0]",
    "%nctaid.x": "M.programs[0]", "%nctaid.y": "M.programs[1]", "%nctaid.z": "M.programs[2]",
}  # fmt: skip


class Writer:
    """The source of one block's function."""

    def __init__(self, kernel: Kernel, slots: Mapping[str, int], n: int, masked: bool) -> None:
        self.kernel, self.slots, self.n, self.masked = kernel, slots, n, masked
        self.lines: list[str] = []
        self.constants: dict[tuple[int, str], str] = {}
        self.values: dict[str, dict[str, str]] = {}  # register -> type -> variable
        self.stacks: dict[tuple[str, ...], str] = {}  # registers that are the rows of one array
        self.changed: dict[str, None] = {}
        self.guard: str | None = None
        self.count = 0

    def source(self) -> str:
        end = f"return {self.n + 1}"
        for i in self.kernel.blocks[self.n]:
            taken = self.condition(i)
            self.guard = taken and (f"({taken} & m)" if self.masked else taken)
            if i.parts[0] == "bra":
                target = self.kernel.labels[i.args[0].name]
                m = "m" if self.masked else "None"
                end = f"return branch({taken}, {m}, {target}, {self.n + 1})" if taken else f"return {target}"
            elif i.parts[0] in ("ret", "exit"):
                if taken:
                    raise Fault(f"line {i.line}: {i.op} of some threads")
                end = f"return {END}"
            elif not i.synchronises:
                self.instruction(i)
        for name in self.changed:
            if name in self.slots:
                value = self.use(Register(name), self.kernel.type_of(name))
                self.line(f"R[{self.slots[name]}] = {value}")
        head = [f"{name} = constant({value}, {kind!r})" for (value, kind), name in self.constants.items()]
        return "\n".join([*head, "def block(M, R, m=None):", *self.lines, f"    {end}"])

    def condition(self, i: Instruction) -> str | None:
        if i.guard is None:
            return None
        return self.let(("~" if i.negated else "") + self.use(i.guard, "pred"))

    def line(self, text: str) -> None:
        self.lines.append("    " + text)

    def let(self, expression: str) -> str:
        self.count += 1
        self.line(f"v{self.count} = {expression}")
        return f"v{self.count}"

    @property
    def mask(self) -> str:
        return self.guard or ("m" if self.masked else "None")

    # operands and results

    def use(self, operand: Any, kind: str) -> str:
        """An expression for an operand as values of a type: an array, or of an immediate a scalar."""
        kind = canonical(kind)
        if isinstance(operand, Number):
            return self.constants.setdefault((operand.value, kind), f"c{len(self.constants)}")
        if isinstance(operand, Name):  # the only symbol is the start of shared memory
            return f"M.full({self.use(Number(SHARED_START), kind)})"
        if operand.name in SPECIAL:
            return SPECIAL[operand.name]
        known = self.values.setdefault(operand.name, {})
        if kind in known:
            return known[kind]
        own = self.kernel.type_of(operand.name)
        if not known:
            known[own] = self.let(f"R[{self.slots[operand.name]}]")
            return self.use(operand, kind)
        if kind in SHORT:
            known[kind] = self.let(f"A.floats({self.use(operand, f'u{8 * width(kind)}')}, {kind!r})")
            return known[kind]
        have, value = next((k, v) for k, v in known.items() if k not in SHORT)
        if "pred" in (kind, have):
            raise Fault(f"{operand.name} is {have}, used as {kind}")
        if width(kind) < width(have):  # its lower bits
            whole = self.use(operand, own)
            return self.let(f"{whole}.astype('u{width(kind)}').view('{NUMPY[kind]}')")
        known[kind] = self.let(f"{value}.view('{NUMPY[kind]}')")
        return known[kind]

    def define(self, register: Any, kind: str, expression: str) -> None:
        """Give a register values; threads outside the mask keep what it had."""
        name, kind = register.name, canonical(kind)
        if name == "_":
            return self.line(expression)
        self.stacks = {rows: v for rows, v in self.stacks.items() if name not in rows}
        own = self.kernel.type_of(name)
        if kind in SHORT:
            kind, expression = f"u{8 * width(kind)}", f"A.bits({expression}, {kind!r})"
        if own != "pred" and width(kind) < width(own):  # extended by its sign, or by zeros
            wide = ("s" if kind[0] == "s" else "u") + own[1:]
            kind, expression = wide, f"({expression}).astype('{NUMPY[wide]}')"
        value = self.let(expression)
        if self.mask != "None" and (name in self.slots or name in self.values):
            value = self.let(f"np.where({self.mask}, {value}, {self.use(register, kind)})")
        self.values[name] = {kind: value}
        self.changed[name] = None
        return None

    def stacked(self, group: Group, kind: str) -> str:
        """Registers as the rows of one array."""
        rows = tuple(r.name for r in group.items)
        return self.stacks.get(rows) or self.let(f"np.array([{', '.join(self.use(r, kind) for r in group.items)}])")

    def spread(self, group: Group, kind: str, expression: str) -> None:
        rows = self.let(expression)
        for k, register in enumerate(group.items):
            self.define(register, kind, f"{rows}[{k}]")
        if self.mask == "None":
            self.stacks[tuple(r.name for r in group.items)] = rows

    def address(self, operand: Address, kind: str) -> str:
        base = self.use(operand.base, kind)
        return f"{base} + {self.use(Number(operand.offset), kind)}" if operand.offset else base

    # instructions

    def instruction(self, i: Instruction) -> None:
        special = getattr(self, "on_" + i.parts[0], None)
        space = ".".join(i.parts[:2]).split("::")[0]
        action = next((ACTIONS[k] for k in (".".join(i.parts[:3]), space, i.parts[0]) if k in ACTIONS), None)
        key = next((k for k in (".".join(i.parts[:3]), ".".join(i.parts[:2]), i.parts[0]) if k in ARITHMETIC), None)
        if action is not None:
            self.line(self.filled(action, i))
        elif special is not None:
            special(i)
        elif key is not None:
            kinds, result, expression = ARITHMETIC[key]
            last = i.parts[-1]
            twice = f"{last[0]}{2 * int(last[1:])}" if last[1:].isdigit() else last
            named = {"T": last, "W": twice, "u": "u32", "p": "pred"}
            operands = [self.use(a, named[k]) for a, k in zip(i.args[1:], kinds, strict=False)]
            part2 = i.parts[2] if len(i.parts) > 2 else ""
            self.define(i.args[0], named[result], expression.format(*operands, part2=part2))
        else:
            raise Fault(f"line {i.line}: the tests do not know {i.op}")

    def filled(self, action: str, i: Instruction) -> str:
        """An action with the operands of the instruction."""
        parts: dict[str, Any] = {"transposed": "trans" in i.parts}
        for operand in i.args:
            if isinstance(operand, Address):
                kind = "u64" if i.parts[1].startswith("global") else "u32"
                parts["address"] = self.address(operand, kind)
            elif isinstance(operand, Number) and "number" not in parts:
                parts["number"] = operand.value
        if i.parts[0] in ("st", "stmatrix"):
            size = 4 if i.parts[0] == "stmatrix" else width(canonical(i.parts[-1]))
            given = i.args[1].items if isinstance(i.args[1], Group) else i.args[1:]
            values = ", ".join(self.use(v, f"u{8 * size}") for v in given)
            parts |= {"size": size, "values": f"({values},)"}
        parts.setdefault("number", 0)
        return action.format(**parts).replace("MASK", self.mask).replace("LINE", str(i.line))

    def on_setp(self, i: Instruction) -> None:
        kind = canonical(i.parts[-1])
        operands = [self.use(a, kind) for a in i.args[1:]]
        compare = COMPARISONS[i.parts[1]] if kind[0] not in "us" or i.parts[1] != "ne" else "{0} != {1}"
        self.define(i.args[0], "pred", compare.format(*operands))

    def on_cvt(self, i: Instruction) -> None:
        to, source = i.parts[-2:]
        operands = [self.use(a, source) for a in i.args[1:]]
        if to in ("bf16x2", "f16x2"):
            return self.define(i.args[0], "u32", f"A.pair({operands[0]}, {operands[1]}, {to!r})")
        direct = to in SHORT or source in SHORT
        return self.define(i.args[0], to, operands[0] if direct else f"A.convert({operands[0]}, {to!r})")

    def on_mov(self, i: Instruction) -> None:
        to, source = i.args
        kind = canonical(i.parts[-1])
        size = 8 * width(kind) if kind != "pred" else 0
        if isinstance(to, Group):
            whole, n = self.use(source, kind), size // len(to.items)
            for k, part in enumerate(to.items):
                self.define(part, f"u{n}", f"({whole} >> {self.use(Number(k * n), kind)}).astype('u{n // 8}')")
        elif isinstance(source, Group):
            n = size // len(source.items)
            parts = [f"{self.use(p, f'u{n}')}.astype('u{size // 8}')" for p in source.items]
            shifted = [f"({p} << {self.use(Number(k * n), kind)})" for k, p in enumerate(parts)]
            self.define(to, kind, " | ".join(shifted))
        elif isinstance(source, Name) and source.name in self.kernel.params:
            self.define(to, kind, f"M.parameter({source.name!r}, {NUMPY[kind]!r})")
        elif isinstance(source, Number):
            self.define(to, kind, f"M.full({self.use(source, kind)})")
        else:
            self.define(to, kind, self.use(source, kind))

    def on_ld(self, i: Instruction) -> None:
        kind = canonical(i.parts[-1])
        to, address = i.args
        if i.parts[1] == "param":
            return self.define(to, kind, f"M.parameter({address.base.name!r}, {NUMPY[kind]!r})")
        targets = to.items if isinstance(to, Group) else (to,)
        how = f"{width(kind)}, {len(targets)}, {self.mask}, {i.line}"
        if i.parts[1].startswith("shared"):
            loaded = self.let(f"M.load_shared({self.address(address, 'u32')}, {how})")
        else:
            by_l1 = not {"cg", "acquire", "relaxed", "volatile"} & set(i.parts)
            loaded = self.let(f"M.load_global({self.address(address, 'u64')}, {how}, {'acquire' in i.parts}, {by_l1})")
        for k, register in enumerate(targets):
            signed = kind if kind[0] == "s" else f"u{8 * width(kind)}"
            self.define(register, signed, f"{loaded}[{k}]" + (f".view('{NUMPY[kind]}')" if kind[0] == "s" else ""))
        return None

    def on_atom(self, i: Instruction) -> None:
        kind = canonical(i.parts[-1])
        what = next(p for p in i.parts if p in ("add", "exch", "cas", "max", "min", "or", "and"))
        order = next((p for p in i.parts if p in ("release", "acquire", "acq_rel")), "relaxed")
        values = "".join(f"M.full({self.use(a, kind)}), " for a in i.args[2:])
        how = f"({values}), {what!r}, {order!r}, {self.mask}, {i.line}"
        self.define(i.args[0], kind, f"M.atomic({self.address(i.args[1], 'u64')}, {how})")

    def on_cp(self, i: Instruction) -> None:
        to, source, last = i.args[:3]
        at = self.address(to, "u32")
        if "bulk" in i.parts:
            place = "".join(f"M.full({self.use(c, 's32')}), " for c in source.coordinates)
            how = f"({place}), {self.address(last, 'u32')}, {self.mask}, {i.line}"
            return self.line(f"M.copy_tile({at}, {self.use(source.base, 'u64')}, {how})")
        count = f"M.full({self.use(i.args[3], 'u32')})" if len(i.args) > 3 else "None"
        return self.line(f"M.copy({at}, {self.address(source, 'u64')}, {last.value}, {count}, {self.mask}, {i.line})")

    def on_mbarrier(self, i: Instruction) -> None:
        at = self.address(i.args[1], "u32")
        self.define(i.args[0], "pred", f"M.passed({at}, {self.use(i.args[2], 'u32')}, {self.mask}, {i.line})")

    def on_elect(self, i: Instruction) -> None:
        leader, elected = i.args[0].items
        self.define(leader, "u32", "M.zero")
        self.define(elected, "pred", "M.lane == 0")

    def on_ldmatrix(self, i: Instruction) -> None:
        how = f"{len(i.args[0].items)}, {'trans' in i.parts}, {self.mask}, {i.line}"
        loaded = self.let(f"M.load_matrix({self.address(i.args[1], 'u32')}, {how})")
        for k, register in enumerate(i.args[0].items):
            self.define(register, "u32", f"{loaded}[{k}]")

    def on_mma(self, i: Instruction) -> None:
        to, a, b, c = i.args
        if i.parts[3] != "m16n8k16" or i.parts[-1] != "f32":
            raise Fault(f"line {i.line}: the tests do not know {i.op}")
        operands = f"{self.stacked(a, 'u32')}, {self.stacked(b, 'u32')}, {self.stacked(c, 'f32')}"
        self.spread(to, "f32", f"M.product({operands}, {i.parts[-2]!r})")

    def on_wgmma(self, i: Instruction) -> None:
        to, a, b, scale, *rest = i.args
        n, kind = int(i.parts[4].split("n")[1].split("k")[0]), i.parts[-1]
        if not i.parts[4].endswith("k16") or kind not in SHORT or [r.value for r in rest[:2]] != [1, 1]:
            raise Fault(f"line {i.line}: the tests do not know {i.op}")
        transposed = [bool(r.value) for r in rest[2:]]
        first = self.stacked(a, "u32") if isinstance(a, Group) else self.use(a, "u64")
        if isinstance(a, Group):
            transposed = [False, *transposed]
        added = str(bool(scale.value)) if isinstance(scale, Number) else self.use(scale, "pred")
        operands = f"{self.stacked(to, 'f32')}, {first}, {self.use(b, 'u64')}, {added}"
        self.spread(to, "f32", f"M.product_async({operands}, {n}, {transposed}, {kind!r}, {self.mask}, {i.line})")
