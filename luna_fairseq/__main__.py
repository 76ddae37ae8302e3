"""``python -m luna_fairseq`` is the command ``luna-fairseq``."""

import sys

from luna_fairseq.cli import main

if __name__ == "__main__":
    sys.exit(main())
