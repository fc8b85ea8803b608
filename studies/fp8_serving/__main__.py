"""``python -m studies.fp8_serving run nutrition-fp8``: the study's notebook through the package's driver."""

import sys

from colq_utils.__main__ import main
from studies.fp8_serving import settings

if __name__ == "__main__":
    sys.exit(main(load=settings.load, step=settings.step))
