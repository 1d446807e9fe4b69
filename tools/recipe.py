"""See `python tools/recipe.py --help`."""

from detkit.cli import run

if __name__ == "__main__":
    run("recipe")
