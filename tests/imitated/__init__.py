"""Scripts that run in a process of their own, on an imitated CUDA device."""
