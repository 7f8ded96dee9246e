import sys

from emilib.runner import main

sys.exit(main())
