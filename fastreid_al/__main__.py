"""`python -m fastreid_al COMMAND`, which is the same as `fastreid-al COMMAND`."""

from .cli import main

if __name__ == "__main__":
    main()
