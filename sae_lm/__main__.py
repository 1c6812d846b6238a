"""``python -m sae_lm``: the same as ``sae-lm``."""

import sys

from sae_lm.cli import main

sys.exit(main())
