"""``python -m ppl`` is the console command too."""

import sys

from ppl.command import main

sys.exit(main())
