"""`python -m rescale`."""

from rescale.cli import main

raise SystemExit(main())
