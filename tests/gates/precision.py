"""Where a kernel computes less exactly than it should, from Triton's IR: what no small case can see in 16 bits.

Products are IEEE products with sums in float32 or wider, and what a loop carries or a wide buffer keeps has not been
rounded to 16 bits on its way.
"""

from __future__ import annotations

import re


def imprecise(ttir: str) -> list[str]:
    """One text for each such place of a kernel."""
    narrow: set[str] = set()
    found, rounded = [], dict[str, bool]()  # value -> whether it was widened again after it had been rounded
    for line in ttir.splitlines():
        code = line.split(" loc(")[0]
        name, _, rest = code.partition(" = ") if re.match(r"\s*%\S+ = ", code) else ("", "", code)
        name, used = name.strip(), re.findall(r"%[\w#]+", rest)
        narrow.discard(name)
        rounded[name] = False
        if rest.startswith("arith.truncf"):
            narrow.add(name)
        elif rest.startswith("arith.extf"):
            rounded[name] = used[0] in narrow
        if rest.startswith("tt.dot"):
            if "inputPrecision" in rest:
                found.append(f"a product that is not IEEE: {code.strip()}")
            if not re.search(r"-> tensor<[\dx]*f(32|64)>", rest):
                found.append(f"a product summed in 16 bits: {code.strip()}")
        kept = used if rest.strip().startswith("scf.yield") else used[1:2] if "tt.store" in rest else []
        found += [f"{value} was rounded to 16 bits: {code.strip()}" for value in kept if rounded.get(value)]
    return found
