// Command gorender is the oracle of the template tests: Go's own text/template, set up as Ollama sets it up.
//
// Standard input holds one JSON request a line; standard output answers each with one JSON line.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"runtime"
	"text/template"
	"text/template/parse"
	"time"
)

type call struct {
	Name      string
	Arguments arguments
}

type arguments map[string]any

func (a arguments) String() string {
	encoded, _ := json.Marshal(a)
	return string(encoded)
}

type toolCall struct {
	Function call
}

// message has the fields of Ollama's own: a template that asks for another fails, here as there.
type message struct {
	Role      string
	Content   string
	Thinking  string
	Images    []string
	ToolCalls []toolCall
	ToolName  string
}

// oldMessage is the one of 0.5.11, which knew of no thinking.
type oldMessage struct {
	Role      string
	Content   string
	Images    []string
	ToolCalls []toolCall
}

type request struct {
	Template string
	Old      bool
	Messages []*message
	System   string
	Tools    []map[string]any
	Think    *bool
}

type answer struct {
	Prompt string   `json:"prompt"`
	Error  string   `json:"error"`
	Parsed bool     `json:"parsed"`
	Texts  []string `json:"texts"`
	Go     string   `json:"go"`
}

var functions = template.FuncMap{
	"json": func(v any) string {
		encoded, _ := json.Marshal(v)
		return string(encoded)
	},
	"currentDate":      func(...string) string { return time.Now().Format("2006-01-02") },
	"yesterdayDate":    func(...string) string { return time.Now().AddDate(0, 0, -1).Format("2006-01-02") },
	"toTypeScriptType": func(any) string { return "any" },
}

func values(r request) map[string]any {
	data := map[string]any{"System": r.System, "Messages": r.Messages, "Tools": r.Tools, "Response": ""}
	if r.Old {
		var messages []*oldMessage
		for _, m := range r.Messages {
			messages = append(messages, &oldMessage{m.Role, m.Content, m.Images, m.ToolCalls})
		}
		data["Messages"] = messages
		return data
	}
	data["IsThinkSet"] = r.Think != nil
	data["Think"] = r.Think != nil && *r.Think
	data["ThinkLevel"] = ""
	return data
}

func texts(node parse.Node) []string {
	var found []string
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, child := range n.Nodes {
			found = append(found, texts(child)...)
		}
	case *parse.TextNode:
		found = append(found, string(n.Text))
	case *parse.IfNode:
		found = append(texts(n.List), texts(n.ElseList)...)
	case *parse.RangeNode:
		found = append(texts(n.List), texts(n.ElseList)...)
	case *parse.WithNode:
		found = append(texts(n.List), texts(n.ElseList)...)
	}
	return found
}

func render(r request) answer {
	result := answer{Go: runtime.Version()}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(r.Template)
	if err != nil {
		result.Error = err.Error()
		return result
	}
	result.Parsed = true
	if parsed.Tree != nil {
		result.Texts = texts(parsed.Root)
	}
	var prompt bytes.Buffer
	if err := parsed.Execute(&prompt, values(r)); err != nil {
		result.Error = err.Error()
		return result
	}
	result.Prompt = prompt.String()
	return result
}

func main() {
	lines := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	in := json.NewDecoder(lines)
	for in.More() {
		var r request
		if err := in.Decode(&r); err != nil {
			panic(err)
		}
		if err := out.Encode(render(r)); err != nil {
			panic(err)
		}
	}
}
