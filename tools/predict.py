"""See `python tools/predict.py --help`."""

from detkit.app.predict import main

if __name__ == "__main__":
    main()
