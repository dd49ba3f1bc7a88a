"""Read datasets of images and labels from files, folders and downloads, and check them."""
