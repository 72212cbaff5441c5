"""`python -m fuzzing`: see `fuzzing.driver`."""

import sys

from fuzzing.driver import main

sys.exit(main())
