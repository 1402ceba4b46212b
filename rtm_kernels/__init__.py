"""rtm_kernels: fused kernels for recursive reasoning models (TRM, HRM, RSM, RINS, RTM)."""
