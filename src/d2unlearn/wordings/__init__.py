"""The same row, asked in other words: what a wording is, how a row is put into one, the tables to train and to choose on."""
