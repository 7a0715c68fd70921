"""How much of each attack an audit makes: for every attack its parts, by level. One file an attack."""
