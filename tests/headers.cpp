// What precompiled headers need: a library that they belong to.
