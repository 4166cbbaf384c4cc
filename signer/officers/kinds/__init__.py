"""The kinds of operation: ``table`` lists them, ``base`` says what each must answer."""
