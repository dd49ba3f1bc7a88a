"""The commands' options and help texts. A command's work is imported when it runs, so that help is quick."""
