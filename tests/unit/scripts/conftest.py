import sys
from pathlib import Path

# The scripts are programs, not a package: they find one another beside themselves, and so do their tests.
sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
