package tidemark
