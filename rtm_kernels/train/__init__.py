"""Training: recipes as data, objectives, the loop, checkpoints and logs. Needs the package pydantic."""

import importlib.util

from rtm_kernels.errors import BackendUnavailable

if importlib.util.find_spec("pydantic") is None:
    raise BackendUnavailable("training needs the package pydantic: pip install 'rtm-kernels[cli]'")
