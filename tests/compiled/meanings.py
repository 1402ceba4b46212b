"""What each instruction means: operand types, result type and an expression, which `codegen` turns into Python.

T is the last type in the opcode, W twice as wide, S the last but one (of two types the result), u an unsigned 32-bit
integer and p a predicate. `A` is `arithmetic`, `M` the machine, `MASK` the threads that take part, `LINE` the line.
"""

from __future__ import annotations

Meaning = tuple[str, str, str]

ARITHMETIC: dict[str, Meaning] = {
    "add": ("TT", "T", "{0} + {1}"),
    "sub": ("TT", "T", "{0} - {1}"),
    "mul": ("TT", "T", "{0} * {1}"),
    "mul.hi": ("TT", "T", "A.high_product({0}, {1})"),
    "mul.wide": ("TT", "W", "A.widened({0}) * A.widened({1})"),
    "mad": ("TTT", "T", "{0} * {1} + {2}"),
    "mad.wide": ("TTW", "W", "A.widened({0}) * A.widened({1}) + {2}"),
    "fma": ("TTT", "T", "A.fma({0}, {1}, {2})"),
    "div": ("TT", "T", "A.divide({0}, {1})"),
    "rem": ("TT", "T", "A.remainder({0}, {1})"),
    "min": ("TT", "T", "np.fmin({0}, {1})"),
    "max": ("TT", "T", "np.fmax({0}, {1})"),
    "and": ("TT", "T", "{0} & {1}"),
    "or": ("TT", "T", "{0} | {1}"),
    "xor": ("TT", "T", "{0} ^ {1}"),
    "not": ("T", "T", "~{0}"),
    "neg": ("T", "T", "-{0}"),
    "abs": ("T", "T", "np.abs({0})"),
    "shl": ("Tu", "T", "A.left({0}, {1})"),
    "shr": ("Tu", "T", "A.right({0}, {1})"),
    "bfe": ("Tuu", "T", "A.extract({0}, {1}, {2})"),
    "prmt": ("uuu", "u", "A.permute({0}, {1}, {2})"),
    "popc": ("T", "u", "np.bitwise_count({0}).astype('u4')"),
    "ex2": ("T", "T", "np.exp2({0})"),
    "lg2": ("T", "T", "np.log2({0})"),
    "sqrt": ("T", "T", "np.sqrt({0})"),
    "rcp": ("T", "T", "({0}.dtype.type(1) / {0})"),
    "rsqrt": ("T", "T", "({0}.dtype.type(1) / np.sqrt({0}))"),
    "selp": ("TTp", "T", "np.where({2}, {0}, {1})"),
    "cvta": ("T", "T", "{0}"),
    "shfl": ("uuu", "u", "M.shuffle({0}, {1}, {2}, '{part2}')"),
    "redux": ("T", "T", "M.reduce({0}, '{part2}')"),
}
"""Register results of register operands."""

COMPARISONS = {
    "eq": "{0} == {1}",
    "ne": "({0} != {1}) & ({0} == {0}) & ({1} == {1})",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lo": "{0} < {1}",
    "ls": "{0} <= {1}",
    "hi": "{0} > {1}",
    "hs": "{0} >= {1}",
    "equ": "({0} == {1}) | ({0} != {0}) | ({1} != {1})",
    "neu": "{0} != {1}",
    "ltu": "~({0} >= {1})",
    "leu": "~({0} > {1})",
    "gtu": "~({0} <= {1})",
    "geu": "~({0} < {1})",
    "num": "({0} == {0}) & ({1} == {1})",
    "nan": "({0} != {0}) | ({1} != {1})",
}
"""setp: comparisons that end in u are true for NaN."""

ACTIONS = {
    "st.shared": "M.store_shared({address}, {size}, {values}, MASK, LINE)",
    "st.global": "M.store_global({address}, {size}, {values}, MASK, LINE)",
    "stmatrix": "M.store_matrix({address}, {values}, {transposed}, MASK, LINE)",
    "cp.async.commit_group": "M.commit_copies(MASK)",
    "cp.async.wait_group": "M.wait_for_copies({number}, MASK)",
    "cp.async.wait_all": "M.commit_copies(MASK); M.wait_for_copies(0, MASK)",
    "mbarrier.init": "M.start_barrier({address}, {number}, MASK, LINE)",
    "mbarrier.inval": "M.end_barrier({address}, MASK, LINE)",
    "mbarrier.arrive": "M.arrive({address}, {number}, MASK, LINE)",
    "wgmma.commit_group": "M.commit_products(MASK)",
    "wgmma.wait_group": "M.wait_for_products({number}, MASK)",
    "wgmma.fence": "pass",  # `hazards` follows it
    "fence.proxy.async": "M.fence_proxy(MASK)",
    "fence": "pass",
    "griddepcontrol": "pass",  # one launch runs alone; hazards.py tells where its wait stands
    "bar.warp": "pass",
}
"""Instructions without a result."""
