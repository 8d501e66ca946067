"""Train HM-VNet: ``python model/train.py data.root=/data/HECKTOR`` (see ``--help``)."""

import sys

from hmvnet.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
