"""ColQ: quantize a ColQwen3 visual-document retriever and measure what that costs and gains."""

import os

from colq_utils.base import arithmetic

# Libraries' progress bars flood notebooks and logs; `colq_utils.base.progress` draws the ones that matter.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# OpenMP threads that spin while they wait slow each other tenfold where cores are shared (CI, laptops).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
arithmetic.pin()
