"""Multiplies two matrices of 2000 x 2000 doubles with NumPy and says how long the quickest of fifteen products took.

python dot.py
strongroom run -- python examples/numpy-dot/dot.py
"""

import time

import numpy as np

a, b = np.random.default_rng(1).random((2, 2000, 2000))
times = []
for _ in range(15):
    started = time.perf_counter()
    product = a.dot(b)
    times.append(time.perf_counter() - started)
print(f"trace: {np.trace(product):.3f}")
print(f"numpy.dot: {min(times)} sec")
