// Package lint holds rules about the text of this repository, as tests; it is
// for tests only and exports nothing.
//
// A rule is a function from text to problems, each a sentence that says what to
// do instead. TestRepository applies the rules to the tree; beside every rule
// stands a test that shows it text it must refuse.
//
// Folder noskip is the command behind make test.
package lint
