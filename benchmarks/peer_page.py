def write_page(history, docs):
    print("page later")
