"""The runner's own engine: C++ (and CUDA) sources, how they are compiled, and their C interface in ctypes."""
