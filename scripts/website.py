"""Writes build/site: the report, the notebooks and the documentation as pages that link to each other.

In a workflow of GitHub, links to other files of the repository lead to GitHub.
"""

import os
import sys

from animals10.files import UserError
from animals10.website import write_site


def main() -> None:
    """Writes the site."""
    address = [os.environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY")]
    try:
        write_site(repository_url="/".join(address) if all(address) else "")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
