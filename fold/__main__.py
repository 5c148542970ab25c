"""`python -m fold` is `bnfold`."""

from fold.cli import main

if __name__ == "__main__":
    main()
