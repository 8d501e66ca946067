"""Container entry point: one patient in ``/input``, mask and risk in ``/output``.

    python process.py --input DIR --output DIR --weights DIR --task {1,2,both}

The defaults are grand-challenge's paths. All it does is in ``hmvnet.container``.
"""

import sys
from pathlib import Path

MODEL = Path(__file__).resolve().parent / "model"
if str(MODEL) not in sys.path:  # a checkout or the container, with nothing installed
    sys.path.insert(0, str(MODEL))

from hmvnet.container import main  # noqa: E402  the package's folder is known by now

if __name__ == "__main__":
    sys.exit(main())
