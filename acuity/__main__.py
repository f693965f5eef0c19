"""`python -m acuity` is `acuity`."""

from acuity.study.cli.main import main

if __name__ == "__main__":
    main()
