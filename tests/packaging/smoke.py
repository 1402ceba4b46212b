"""The smoke test of an install, the same for every Python, PyTorch and processor: one line of JSON, or an error."""

import ctypes
import json
import platform
from importlib import metadata, util
from pathlib import Path


def floats(count, scale=0.5):
    return (ctypes.c_float * count)(*(scale * ((i * 37) % 19 - 9) / 9 for i in range(count)))


def symmetric_layer(library, isa):
    """The sum of a latent [1, 16, 9] after one step of a small model, which needs neither PyTorch nor numpy."""
    model, tape = ctypes.c_void_p(), (ctypes.c_int64 * 6)(0, 0, 1, 0, 1, 1)
    sizes = (ctypes.c_int64 * 7)(4, 2, 1, 2, 1, 2, 1)
    new = library.rtm_symmetric_new(isa, sizes, ctypes.c_int64(1), ctypes.c_double(1e-5), tape, ctypes.c_int64(1),
                                    ctypes.byref(model))  # fmt: skip
    weights = [floats(count) for count in (12, 12, 12, 1, 1, 1, 8, 18, 4, 9)]
    at = (ctypes.c_void_p * 10)(*map(ctypes.addressof, weights))
    errors = [new, library.rtm_symmetric_set_layer(model, ctypes.c_int64(0), ctypes.c_int64(0), at)]
    one, state = ctypes.c_int64(1), library.rtm_symmetric_state(model)
    latent, x, out = floats(state), floats(state), floats(16 * 9)
    errors += [library.rtm_symmetric_sort(model, floats(16 * 9), one, to, one) for to in (latent, x)]
    run = (ctypes.c_void_p * 1)(ctypes.addressof(latent)), x, one, ctypes.c_int64(0), one, None, one
    errors += [library.rtm_symmetric_forward(model, *run), library.rtm_symmetric_unsort(model, latent, one, out, one)]
    library.rtm_symmetric_free(model)
    assert not any(errors), errors
    return sum(abs(value) for value in out)


spec = util.find_spec("rtm_kernels")
library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("_cpu.*"))))
library.rtm_isas.restype = ctypes.c_char_p
isas = library.rtm_isas(b"float32").split(b",")[:-1]
sums = {round(symmetric_layer(library, isa), 3) for isa in isas}
assert len(sums) == 1, sums
row = {"python": platform.python_version(), "machine": platform.machine(), "torch": None, "sum": sums.pop()}
row["instruction sets"] = [isa.decode() for isa in isas]
if util.find_spec("torch"):
    from rtm_kernels import RecursiveReasoner, Solver
    from rtm_kernels.data.examples import example_puzzles

    solver = Solver(RecursiveReasoner.from_pretrained("sudoku"))
    solutions = solver.solve(example_puzzles()[:2])
    assert [s.status for s in solutions] == ["verified"] * 2, solutions
    row.update(torch=metadata.version("torch"), executor=solver.executor.name)
print(json.dumps(row))
