"""`python -m api.cli`, for where the `fairlead` script is not on the path."""

from api.cli import main

main()
