"""The providers, one file each; ``transport`` defines what each of them does."""
