"""Looking at runs and files, and measuring them. README.md is the notebook of measurements."""
