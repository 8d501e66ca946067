"""How loops over the voxels of training patches are compiled: inference does without numba."""

from __future__ import annotations

import numba

# At a process's first call, in two seconds for all of them: nothing is kept on disk, where homes
# are full and packages read-only. Threads run side by side; a product and its sum may be rounded
# once.
compiled = numba.njit(nogil=True, fastmath={"contract"})
