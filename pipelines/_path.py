"""Make `scalablevit` importable from the checkout, or the copy uploaded with a job, that this script is in."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))
