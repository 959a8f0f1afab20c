"""One file a provider; ``transport`` says what each of them does."""
